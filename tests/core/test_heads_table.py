"""The table of heads: a module for every kind, and every kind written down and read back."""

from typing import Any

import pytest
import torch

from graftwork.core.heads import KINDS, HeadConfig, read_head, write_head
from graftwork.core.heads_table import HEADS, build_head
from graftwork.errors import AdapterError

PLAIN: dict[str, dict[str, Any]] = {
    "regression": {"num_outputs": 1},
    "question_answering": {"num_outputs": 2},
    "sentence_embedding": {"num_outputs": 8, "layers": 0},
}


def config(kind: str, **choices: Any) -> HeadConfig:
    pooling = "first" if KINDS[kind].pools else "none"
    return HeadConfig(kind=kind, pooling=pooling, **{"num_outputs": 3, **PLAIN.get(kind, {}), **choices})


def test_every_kind_has_a_module() -> None:
    assert list(HEADS) == list(KINDS)
    for kind in set(KINDS) - {"custom"}:
        module = build_head(config(kind), 8).eval()
        assert module.config.kind == kind
        if kind != "dependency_parsing":
            assert torch.isfinite(module(torch.randn(6, 4, 8))).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_is_written_and_read_back(kind: str) -> None:
    changed = {"scale": 0.5} if "scale" in KINDS[kind].options else {"custom": "x", "arguments": {"power": 2}}
    for one in (config(kind), config(kind, **changed)):
        assert read_head(write_head(one)) == one
    assert write_head(config(kind))["options"] == {}
    assert write_head(config(kind, **changed))["options"] == changed


def test_unknown_keys_are_refused() -> None:
    written = write_head(config("tagging"))
    with pytest.raises(AdapterError, match="head: unknown depth; options are arguments, bias"):
        read_head(written | {"options": {"depth": 3}})
    with pytest.raises(AdapterError, match="head: unknown depth"):
        read_head(written | {"depth": 3})
    with pytest.raises(AdapterError, match="head: unknown kind"):
        read_head(written | {"options": {"kind": "classification"}})


@pytest.mark.parametrize(
    ("kind", "choices", "message"),
    [
        ("classification", {"scale": 0.0}, "scale 0.0 must be a number above 0"),
        ("sentence_embedding", {"temperature": -1.0}, "temperature -1.0 must be above 0"),
        ("classification", {"norm_eps": 0.0}, "norm_eps 0.0 must be a number above 0"),
        ("masked_lm", {"width": -1}, "width -1 must be a whole number from 0 up"),
        ("classification", {"tied": True, "shift": True}, "tied, shift: no meaning for kind 'classification', whose"),
        ("masked_lm", {"labels": ("a", "b", "c")}, "the outputs of kind 'masked_lm' have no names"),
    ],
)
def test_options_out_of_range_are_refused(kind: str, choices: dict[str, Any], message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        config(kind, **choices)
