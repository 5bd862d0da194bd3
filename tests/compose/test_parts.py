"""Parts: what has been added to a backbone, under any name, and what is refused."""

import copy
import pickle
from typing import Any

import pytest
import torch

from graftwork.compose.grammar import parse
from graftwork.compose.parts import Parts
from graftwork.compose.tree import Fuse, Stack
from graftwork.core.backbone import Backbone
from graftwork.core.fusion import FUSIONS
from graftwork.core.heads import HeadConfig
from graftwork.core.kinds import read_config
from graftwork.errors import AdapterError
from tests import tiny
from tests.rig import Rig

AWKWARD = ["a", "a.b", "a%2Eb", "weight", "train", "keys", "org/name-1_x@2", "=a", "A"]


@pytest.fixture
def rig() -> Rig:
    rig = Rig("bert", {"a": "seq_bn", "b": "double_seq_bn", "late": "seq_bn[leave_out=[0,1]]"})
    rig.parts.add_fusion(Fuse("a", "b"), FUSIONS["dynamic"], rig.backbone)
    rig.parts.add_head("a", HeadConfig(kind="classification", num_outputs=3), rig.backbone)
    return rig


def test_an_adapter_has_modules_where_its_configuration_wants_them(rig: Rig) -> None:
    assert list(rig.parts.modules_of("adapters", "a")) == [f"layer.{n}/ffn" for n in range(3)]
    assert list(rig.parts.modules_of("adapters", "late")) == ["layer.2/ffn"]
    assert [rig.parts.adapter("late", site) is None for site in range(6)] == [True] * 5 + [False]
    assert rig.parts.adapter("b", 0) is rig.parts.modules_of("adapters", "b")["layer.0/attn"]
    assert rig.parts.count("adapters", "b") == 6 * (2 * 32 * 2 + 2 + 32)
    assert sorted(rig.parts.tensors("adapters", "late")) == [
        "layer.2/ffn/down.bias", "layer.2/ffn/down.weight", "layer.2/ffn/up.bias", "layer.2/ffn/up.weight"
    ]  # fmt: skip


def test_a_fusion_has_modules_where_all_of_its_members_have(rig: Rig) -> None:
    assert list(rig.parts.modules_of("fusions", "a,b")) == [f"layer.{n}/ffn" for n in range(3)]
    rig.parts.add_fusion(Fuse("a", Stack("b", "late"), name="x"), FUSIONS["static"], rig.backbone)
    assert len(rig.parts.modules_of("fusions", "x")) == 3  # b speaks for its Stack where late is silent
    rig.parts.add_fusion(Fuse("b", "late", name="y"), FUSIONS["static"], rig.backbone)
    assert list(rig.parts.modules_of("fusions", "y")) == ["layer.2/ffn"]
    assert rig.parts.fusion("y", 1) is None
    assert rig.parts.fusion("y", 5) is not None
    assert rig.parts.fusion_records["y"].tree == Fuse("b", "late", name="y")


def test_a_head_sits_on_the_width_of_the_base(rig: Rig) -> None:
    assert sorted(rig.parts.tensors("heads", "a")) == [
        "layers.1.bias",
        "layers.1.weight",
        "layers.4.bias",
        "layers.4.weight",
    ]
    assert rig.parts.tensors("heads", "a")["layers.4.weight"].shape == (3, tiny.WIDTH)
    assert rig.parts.head("a") is rig.parts.modules_of("heads", "a")["head"]


def test_any_name_is_kept_apart_from_every_other() -> None:
    rig = Rig("llama", dict.fromkeys(AWKWARD, "seq_bn"))
    assert list(rig.parts.adapter_configs) == AWKWARD
    modules = [rig.parts.adapter(name, 1) for name in AWKWARD]
    assert len({id(module) for module in modules}) == len(AWKWARD)
    assert len(rig.parts.state_dict()) == 4 * 3 * len(AWKWARD)
    for name in AWKWARD:
        assert list(rig.parts.modules_of("adapters", name)) == [f"layer.{n}/ffn" for n in range(3)]
    rig.parts.remove("adapters", "a")
    assert list(rig.parts.adapter_configs) == AWKWARD[1:]
    assert rig.parts.adapter("a.b", 1) is modules[1]


def test_the_state_is_the_parts_and_nothing_else(rig: Rig) -> None:
    keys = set(rig.parts.state_dict())
    assert {key.split(".")[0] for key in keys} == {"adapters", "fusions", "heads"}
    twin = copy.deepcopy(rig.parts)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    twin.load_state_dict(rig.parts.state_dict())
    assert all(torch.equal(twin.state_dict()[key], rig.parts.state_dict()[key]) for key in keys)


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_a_copy_knows_its_own_modules(rig: Rig, copier: Any) -> None:
    twin: Parts = copier(rig.parts)
    module = twin.adapter("a", 1)
    assert module is twin.modules_of("adapters", "a")["layer.0/ffn"]
    assert module is not rig.parts.adapter("a", 1)
    assert twin.head("a") is not rig.parts.head("a")


def test_replacing_and_removing_leave_nothing_behind(rig: Rig) -> None:
    rig.parts.origins["b"] = "digest"
    rig.parts.add_adapter("b", read_config("seq_bn[leave_out=[0]]"), rig.backbone)
    assert rig.parts.adapter("b", 0) is None
    assert rig.parts.adapter("b", 1) is None
    assert "b" not in rig.parts.origins
    rig.parts.remove("fusions", "a,b")
    rig.parts.remove("heads", "a")
    for name in ("a", "b", "late"):
        rig.parts.remove("adapters", name)
    rig.parts.remove("adapters", "never there")
    assert not rig.parts.state_dict()
    assert rig.parts.adapter_configs == rig.parts.fusion_records == rig.parts.head_configs == {}
    assert not rig.parts._sites


def test_new_parts_follow_the_mode_of_the_old(rig: Rig) -> None:
    rig.parts.eval()
    rig.parts.add_adapter("new", read_config("seq_bn"), rig.backbone)
    assert not any(module.training for module in rig.parts.modules())
    rig.parts.train()
    rig.parts.add_adapter("newer", read_config("seq_bn"), rig.backbone)
    assert all(module.training for module in rig.parts.modules())


def test_parts_are_placed_with_their_layer() -> None:
    backbone = Backbone(tiny.model("llama").to(torch.bfloat16))
    parts = Parts()
    parts.add_adapter("a", read_config("seq_bn[use_gating=True,scaling=channel,ln_after=True]"), backbone)
    parts.add_fusion(Fuse("a", Stack("a")), FUSIONS["dynamic"], backbone)
    parts.add_head("a", HeadConfig(kind="regression", num_outputs=1), backbone)
    assert {parameter.dtype for parameter in parts.parameters()} == {torch.bfloat16}


def test_only_the_chosen_parts_train(rig: Rig) -> None:
    rig.parts.origins |= {"a": "digest", "b": "digest"}
    rig.parts.train_only([("adapters", "b"), ("heads", "a")])
    trained = {key for key, parameter in rig.parts.named_parameters() if parameter.requires_grad}
    expected = {f"{table}.={name}." for table, name in [("adapters", "b"), ("heads", "a")]}
    assert trained == {key for key in rig.parts.state_dict() if any(key.startswith(prefix) for prefix in expected)}
    assert rig.parts.origins == {"a": "digest"}  # b will no longer be what its package holds


def test_loading_other_weights_ends_the_link_to_a_package(rig: Rig) -> None:
    rig.parts.origins |= {"a": "digest", "b": "digest"}
    state = {key: value.clone() for key, value in rig.parts.state_dict().items()}
    rig.parts.load_state_dict(state)
    assert rig.parts.origins == {"a": "digest", "b": "digest"}
    key = next(key for key in state if key.startswith("adapters.=b."))
    state[key] += 1
    rig.parts.load_state_dict(state)
    assert rig.parts.origins == {"a": "digest"}


def test_the_penalty_is_that_of_trained_fusions_in_use(rig: Rig) -> None:
    rig.parts.add_fusion(Fuse("b", "a", name="other"), FUSIONS["dynamic"], rig.backbone)
    rig.parts.add_fusion(Fuse("b", "a", name="fixed"), FUSIONS["static"], rig.backbone)
    with torch.no_grad():
        for module in rig.parts.modules_of("fusions", "a,b").values():
            module.value.weight.copy_(3 * torch.eye(tiny.WIDTH))
    rig.parts.train_only([("fusions", "a,b"), ("fusions", "fixed")])
    used = parse("Stack(a, Fuse(a, b))")
    penalty = rig.parts.fusion_penalty([used, used, None, "a"])
    assert penalty is not None
    assert float(penalty.detach()) == pytest.approx(3 * 0.01 * 4 * tiny.WIDTH)  # three sites, (3 - 1)² on the diagonal
    assert rig.parts.fusion_penalty([None, "a", parse("Fuse(b, a, name=other)")]) is None  # not trained
    assert rig.parts.fusion_penalty([parse("Fuse(b, a, name=fixed)")]) is None  # has no value matrix


# -- what is refused --


def test_a_composition_must_name_what_is_there(rig: Rig) -> None:
    for text in ("a", "none", "Stack(a, Fuse(a, b))", "Parallel(late, none)"):
        rig.parts.check(parse(text))
    for text, message in {
        "x": r"no adapter 'x'; the adapters are: a, b, late",
        "Stack(a, Average(b, x))": r"no adapter 'x'",
        "Fuse(b, a)": r"no fusion 'b,a' for Fuse\(b, a\); add one with add_adapter_fusion. The fusions are: a,b",
        "Fuse(a, b, name=x)": r"no fusion 'x' for Fuse\(a, b, name=x\)",
        "Fuse(Stack(late, a), b)": r"fusion 'a,b' was made for Fuse\(a, b\), not for Fuse\(Stack\(late, a\), b\)",
    }.items():
        with pytest.raises(AdapterError, match=message):
            rig.parts.check(parse(text))


def test_unknown_parts_are_named_with_those_that_are_there(rig: Rig) -> None:
    with pytest.raises(AdapterError, match=r"no head 'b'; the heads are: a$"):
        rig.parts.head("b")
    with pytest.raises(AdapterError, match=r"no adapter 'x'; the adapters are: a, b, late"):
        rig.parts.adapter("x", 0)
    with pytest.raises(AdapterError, match=r"no adapter 'x'"):
        rig.parts.add_fusion(Fuse("a", "x"), FUSIONS["dynamic"], rig.backbone)
    with pytest.raises(AdapterError, match="the adapters are: none yet"):
        Parts().need_adapter("a")


def test_parts_without_any_module_are_refused_and_nothing_is_added(rig: Rig) -> None:
    before = set(rig.parts.state_dict())
    with pytest.raises(AdapterError) as raised:
        rig.parts.add_adapter("c", read_config("seq_bn[leave_out=[0,1,2]]"), rig.backbone)
    assert "adapter 'c' would have no module at all: bottleneck goes to sub-layers" in str(raised.value)
    assert "the model has sites of kind attn, ffn, " in str(raised.value)
    assert "leaves out [0, 1, 2]" in str(raised.value)
    with pytest.raises(AdapterError, match="adapter 'c' would have no module at all"):
        rig.parts.add_adapter("c", read_config("seq_bn[output_adapter=False,cross_adapter=True]"), rig.backbone)
    rig.parts.add_adapter("early", read_config("seq_bn[leave_out=[2]]"), rig.backbone)
    with pytest.raises(
        AdapterError, match=r"Fuse\(early, late\): the members share no site, so there is nothing to fuse"
    ):
        rig.parts.add_fusion(Fuse("early", "late"), FUSIONS["dynamic"], rig.backbone)
    rig.parts.remove("adapters", "early")
    assert set(rig.parts.state_dict()) == before
    assert "c" not in rig.parts.adapter_configs
