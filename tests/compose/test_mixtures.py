"""Every method with every other: what has a delta composes with what has one, at whatever sites, row by row.

The properties of `test_route.py` over a zoo of methods: a batch is its rows one at a time, and gradients reach exactly
what was routed. What has no meaning is refused, with the reason.
"""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from graftwork.compose.grammar import parse
from graftwork.compose.tree import Composition, Fuse, Stack, fusions, leaves
from graftwork.errors import CompositionError
from tests import tiny
from tests.compose.test_route import expected_lanes, of_row, one_row
from tests.conftest import PROFILE
from tests.rig import METHODS, Rig, relative
from tests.trees import compositions, rows

TOKENS, BATCH = 6, 4
NAMES = tuple(name for name in METHODS if name not in ("prefix", "unipelt"))  # prefixes have no Average, no Split
RIGS = {family: Rig(family, METHODS) for family in ("bert", "llama")}
EXAMPLES = 1000 if PROFILE == "full" else 40


def fusable(tree: Composition, rig: Rig) -> bool:
    """Whether every fusion has a site where all of its members are; another one cannot be made."""
    for fuse in fusions(tree):
        sites = [
            {site for name in leaves(child) for site in rig.parts.modules_of("adapters", name)}
            for child in fuse.children
        ]
        if not {site for site in set.intersection(*sites) if not site.endswith((".kv", "prompt", "shared"))}:
            return False
    return True


def trained(rig: Rig, output: torch.Tensor) -> set[str]:
    """The adapters that a backward of the output reaches."""
    rig.parts.zero_grad(set_to_none=True)
    if output.requires_grad:
        (output * torch.linspace(-1, 1, output.shape[-1])).sum().backward()
    return {
        name
        for name in rig.parts.adapter_configs
        for module in rig.parts.modules_of("adapters", name).values()
        if any(one.grad is not None for one in module.parameters())
    }


@pytest.mark.parametrize("family", RIGS)
@settings(max_examples=EXAMPLES)
@given(trees=st.lists(rows(NAMES, tokens=TOKENS, depth=2), min_size=2, max_size=BATCH))
def test_a_batch_of_methods_is_its_rows_one_at_a_time(family: str, trees: list[Composition]) -> None:
    rig, inputs = RIGS[family], tiny.inputs(family, rows=len(trees), tokens=TOKENS)
    trees = [tree if fusable(tree, rig) else leaves(tree)[0] for tree in trees]
    rig.parts.requires_grad_(True)
    rig.learn_fusions(trees)
    output = rig.run(trees, inputs)
    with torch.no_grad():
        for row, tree in enumerate(trees):
            assert relative(output[row : row + 1], rig.run(tree, one_row(inputs, row))) < 1e-5
    routed = {name for tree in trees for name in leaves(tree)}
    fused = {name for tree in trees for fuse in fusions(tree) for name in leaves(fuse)}  # silent where one is missing
    assert routed - fused <= trained(rig, output) <= routed


@pytest.mark.parametrize("family", RIGS)
@settings(max_examples=EXAMPLES)
@given(tree=compositions(NAMES, batch=3, tokens=TOKENS, depth=2))
def test_a_composition_of_methods_is_its_rows_one_at_a_time(family: str, tree: Composition) -> None:
    rig, inputs = RIGS[family], tiny.inputs(family, rows=3, tokens=TOKENS)
    tree = tree if fusable(tree, rig) else Stack(*leaves(tree))
    rig.learn_fusions([tree])
    with torch.no_grad():
        output = rig.run(tree, inputs)
        lanes = expected_lanes([of_row(tree, row) for row in range(3)])
        assert len(output) == len(lanes)
        for place, (row, alone) in enumerate(lanes):
            assert relative(output[place : place + 1], rig.run(alone, one_row(inputs, row))) < 1e-5


@pytest.mark.parametrize("family", ["bert", "llama", "gpt2", "t5", "modernbert"])
def test_one_batch_of_everything(family: str) -> None:
    texts = ["seq", "lora", "ia3", "none", "Stack(lora, seq)", "Fuse(both, unipelt, name=u)", "Average(dora, vera)"]
    texts += ["Fuse(Stack(lora, seq), both, name=s)", "Stack(ia3, Fuse(seq, partly, name=p), compacter)"]
    texts += ["Average(lora, none)", "Fuse(seq, partly, name=q)", "Fuse(inv, inv2, name=i)"]
    rig = Rig(family, METHODS | {"inv2": METHODS["inv"]})
    trees = [parse(text) for text in texts]
    rig.learn_fusions(trees)
    inputs = tiny.inputs(family, rows=len(trees))
    with torch.no_grad():
        output = rig.run(trees, inputs)
        for row, tree in enumerate(trees):
            assert relative(output[row : row + 1], rig.run(tree, one_row(inputs, row))) < 1e-5
        one, other = (output[texts.index(text)] for text in ("Fuse(seq, partly, name=q)", "none"))
        assert relative(one, other) > 1e-3


def test_several_fusions_over_the_same_members_are_each_their_own() -> None:
    rig, inputs = RIGS["bert"], tiny.inputs("bert", rows=2)
    trees = [Fuse("lora", "both", name="one"), Fuse("lora", "both", name="two")]
    rig.learn_fusions(trees)
    for module in rig.parts.modules_of("fusions", "two").values():
        torch.nn.init.normal_(module.query.weight)  # type: ignore[union-attr, arg-type]
    with torch.no_grad():
        assert relative(rig.run(trees[0], inputs), rig.run(trees[1], inputs)) > 1e-4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Average(prefix, prefix2)", "has no meaning for prefixes and prompts"),
        ("Average(prompt, seq)", "has no meaning for prefixes and prompts"),
        ("Split(prefix:3, prefix2:4)", "Split"),
        ("Stack(Parallel(seq, lora), Parallel(seq, lora))", "one Parallel in a composition"),
        ("Fuse(seq, none, name=f)", "no adapter says nothing"),
        ("Fuse(seq, BatchSplit(lora:1, seq:1), name=f)", "trained for one fixed list of members"),
        ("Average(seq, Parallel(lora, seq))", "an average has one result"),
        ("Split(Parallel(seq, lora):3, seq:4)", "cannot be repeated"),
    ],
)
def test_what_has_no_meaning_is_refused_with_the_reason(text: str, message: str) -> None:
    extra: dict[str, Any] = {"prefix": "prefix_tuning_flat", "prefix2": "prefix_tuning_flat", "prompt": "prompt_tuning"}
    rig = Rig("bert", {"seq": METHODS["seq"], "lora": METHODS["lora"], **extra})
    with pytest.raises(CompositionError, match=message):
        rig.run(parse(text), tiny.inputs("bert"))
