"""Configurations as people write them: names, aliases, strings with flags, mappings; and back to plain data."""

import json
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graftwork.core.activations import ACTIVATIONS
from graftwork.core.bottleneck import BottleneckConfig
from graftwork.core.distributions import INITS
from graftwork.core.kinds import (
    METHODS,
    NAMED,
    AdapterConfig,
    BnConfig,
    ConfigUnion,
    DoubleSeqBnConfig,
    ParBnConfig,
    SeqBnConfig,
    is_named,
    read_config,
    write_config,
)
from graftwork.core.lora import LoRAConfig
from graftwork.core.spellings import ALIASES
from graftwork.core.union import UnionConfig
from graftwork.errors import AdapterError


def test_named_configurations_are_those_of_the_papers() -> None:
    assert NAMED["seq_bn"] == BottleneckConfig(
        mh_adapter=False, output_adapter=True, original_ln_before=True, original_ln_after=True, non_linearity="relu",
        reduction_factor=16, residual_before_ln=True, is_parallel=False, scaling=1.0, init_weights="bert",
    )  # fmt: skip
    assert NAMED["double_seq_bn"] == BottleneckConfig(
        mh_adapter=True, output_adapter=True, original_ln_before=False, original_ln_after=True, non_linearity="swish",
        reduction_factor=16,
    )  # fmt: skip
    assert NAMED["par_bn"] == BottleneckConfig(
        is_parallel=True, reduction_factor=2, non_linearity="relu", scaling=4.0, init_weights="mam_adapter"
    )
    assert NAMED["scaled_par_bn"] == BottleneckConfig(
        is_parallel=True, reduction_factor=2, scaling="learned", init_weights="mam_adapter"
    )


def test_names_and_aliases() -> None:
    for name, config in NAMED.items():
        assert read_config(name) == config
        assert is_named(name)
    for alias, name in ALIASES.items():
        assert read_config(alias) == NAMED[name]
        assert is_named(f" {alias}[dropout=0.1] ")
    assert not is_named("seq")
    assert not is_named("Stack(seq_bn)")


@pytest.mark.parametrize(
    ("text", "changes"),
    [
        ("seq_bn[reduction_factor=8]", {"reduction_factor": 8}),
        ("pfeiffer[ reduction_factor = 2.5 , non_linearity=gelu ]", {"reduction_factor": 2.5, "non_linearity": "gelu"}),
        ("seq_bn[]", {}),
        ("seq_bn[leave_out=[0,1,2],dropout=0.1]", {"leave_out": (0, 1, 2), "dropout": 0.1}),
        ("seq_bn[leave_out=(0, 1),mh_adapter=True]", {"leave_out": (0, 1), "mh_adapter": True}),
        (
            "seq_bn[reduction_factor={'0': 8, 'default': 16},leave_out=[3]]",
            {"reduction_factor": {"0": 8, "default": 16}, "leave_out": (3,)},
        ),
        ("seq_bn[residual_before_ln=post_add]", {"residual_before_ln": "post_add"}),
        (
            "seq_bn[residual_before_ln='post_add',use_gating=true]",
            {"residual_before_ln": "post_add", "use_gating": True},
        ),
        ("seq_bn[scaling=learned,init_weights_seed=none]", {"scaling": "learned"}),
    ],
)
def test_strings_with_flags(text: str, changes: dict[str, Any]) -> None:
    assert read_config(text) == SeqBnConfig(**changes)


def test_overrides_win_over_flags() -> None:
    assert AdapterConfig.load("seq_bn[reduction_factor=8]", reduction_factor=4) == SeqBnConfig(reduction_factor=4)
    assert read_config(NAMED["par_bn"], {"scaling": 1.0}) == ParBnConfig(scaling=1.0)
    assert read_config({"kind": "bottleneck", "dropout": 0.1}, {"dropout": 0.2}) == BnConfig(dropout=0.2)
    assert DoubleSeqBnConfig() == read_config("houlsby")
    assert read_config({"mh_adapter": True}) == BottleneckConfig(mh_adapter=True)


configs = st.builds(
    BottleneckConfig,
    mh_adapter=st.booleans(),
    cross_adapter=st.booleans(),
    reduction_factor=st.one_of(
        st.integers(1, 64),
        st.floats(0.5, 64),
        st.dictionaries(st.sampled_from(["0", "3", "default"]), st.integers(1, 9), min_size=1),
    ),
    non_linearity=st.sampled_from(ACTIVATIONS),
    original_ln_before=st.just(True),
    original_ln_after=st.booleans(),
    init_weights=st.sampled_from(INITS),
    init_weights_seed=st.none() | st.integers(0, 2**32 - 1),
    scaling=st.one_of(st.sampled_from(["learned", "channel"]), st.floats(-4, 4), st.integers(1, 4)),
    residual_before_ln=st.sampled_from([True, False, "post_add"]),
    leave_out=st.lists(st.integers(0, 30), max_size=3),
    dropout=st.floats(0, 0.99),
)


@given(configs)
def test_written_as_plain_data_and_read_back(config: BottleneckConfig) -> None:
    data = write_config(config)
    assert data["kind"] == "bottleneck"
    assert isinstance(data["leave_out"], list)
    assert set(data) == {"kind", *(field.name for field in fields(BottleneckConfig))}
    assert read_config(json.loads(json.dumps(data))) == config


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            "seq_bm",
            r"'seq_bm' is unknown, did you mean 'seq_bn'\?; there are seq_bn, .*\(aliases pfeiffer.*with flags as",
        ),
        ("xyz", r"'xyz' is unknown; there are seq_bn, double_seq_bn"),
        ("seq_bn[reduction_factor=8", r"'seq_bn\[reduction_factor=8' is unknown"),
        ("", "'' is unknown"),
        ("seq_bn[8]", r"cannot read '8' in 'seq_bn\[8\]': write each flag once, as key=value"),
        ("seq_bn[dropout=0.1,dropout=0.2]", r"cannot read 'dropout=0.2' in .*: write each flag once"),
        ("seq_bn[=1]", "cannot read '=1'"),
        ("seq_bn[dropout=0.1,]", "cannot read ''"),
        ("seq_bn[reduction_facto=8]", r"seq_bn: unknown flag 'reduction_facto'; did you mean 'reduction_factor'\?"),
        ("houlsby[zzz=8]", r"houlsby: unknown flag 'zzz'; the flags are adapter_residual_before_ln, bias"),
        ("seq_bn[reduction_factor=eight]", "reduction_factor 'eight' must be a positive number"),
        ({"kind": "loora"}, "adapter method 'loora' is unknown; the methods are bottleneck, lora"),
        ({"kind": "union"}, "union: members are missing; give at least two configurations"),
        ("lora|", "'' is unknown"),
        ("lora|seq_bm[reduction_factor=8]", "'seq_bm"),
        ("lora[r=0]|seq_bn", r"lora adapter: r 0 must be a whole number from 1"),
        ("lora[attn_matrices=['q','w']]", r"attn_matrices \('q', 'w'\) must be a list of 'q', 'k', 'v', 'o'"),
        ({"kind": "union", "members": ["lora", {"kind": "lora", "rank": 3}]}, "lora: unknown flag 'rank'"),
        ({"kind": "union", "members": ["lora", "seq_bn"]}, "union adapter: 'lora' is not a configuration"),
        ("lora|seq_bn[0.r=4]", "seq_bn: unknown flag '0.r'"),
        ({"lora_r": 8}, "bottleneck: unknown flag 'lora_r'; the flags are"),
        (3, "3 is not an adapter configuration: give a name"),
        (None, r"None is not an adapter configuration: give a name \(seq_bn, .*\), a config string or a configuration"),
    ],
)
def test_what_cannot_be_read_is_named_with_a_hint(config: Any, message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        read_config(config)


def test_the_table_of_methods_names_what_each_writes() -> None:
    for kind, method in METHODS.items():
        assert method.kind == kind
        config = method(members=(LoRAConfig(), BnConfig())) if method is UnionConfig else method()
        assert write_config(config)["kind"] == kind


def test_unions_and_the_flags_of_their_members() -> None:
    union = read_config("lora[r=4] | seq_bn[reduction_factor={'0': 8, 'default': 4}]")
    assert union == ConfigUnion(LoRAConfig(r=4), SeqBnConfig(reduction_factor={"0": 8, "default": 4}))
    assert read_config(union, {"0.r": 2, "1.dropout": 0.1, "0.alpha": 1}) == ConfigUnion(
        LoRAConfig(r=2, alpha=1), SeqBnConfig(reduction_factor={"0": 8, "default": 4}, dropout=0.1)
    )
    for key in ("r", "2.r", "x.r"):
        with pytest.raises(AdapterError, match=rf"lora\|par_bn: unknown flag '{key}'; .* written 0.flag to 1.flag"):
            read_config("lora|par_bn", {key: 2})
    with pytest.raises(AdapterError, match=r"members \(.*\) must be at least two configurations"):
        ConfigUnion("lora")


members = st.one_of(configs, st.builds(LoRAConfig, r=st.integers(1, 9), alpha=st.floats(0, 9), leave_out=st.just([1])))


@given(st.recursive(members, lambda inner: st.lists(inner, min_size=2, max_size=3).map(lambda m: ConfigUnion(*m))))
def test_unions_of_unions_are_written_and_read_back(config: Any) -> None:
    assert read_config(json.loads(json.dumps(write_config(config)))) == config
