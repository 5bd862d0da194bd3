"""Routing: rows and tokens go where the composition says, each once; a mixed batch is its rows one at a time."""

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from graftwork.compose.grammar import parse
from graftwork.compose.lower import Lane, lanes_of, lanes_of_rows, runs_of
from graftwork.compose.route import route
from graftwork.compose.tree import Average, BatchSplit, Composition, Fuse, Parallel, Split, Stack, fusions, has, leaves
from graftwork.core.site import NO_DELTA, Delta, Reading
from graftwork.errors import CompositionError
from graftwork.model import AdapterModel
from tests import tiny, zoo
from tests.rig import ZOO, Rig, randomise, relative
from tests.trees import compositions, rows

NAMES = tuple(ZOO)
BATCH, TOKENS = 4, 6
# In float64: in float32 the softmax of a random fusion may carry on what its scores are rounded by, beyond 1e-5.
RIGS = {family: Rig(family, dtype=torch.float64) for family in ("bert", "llama")}


def rebuilt(tree: Any, children: list[Composition]) -> Composition:
    return Stack(*children) if isinstance(tree, Stack) else Average(*children, weights=tree.weights)


def of_row(tree: Composition, row: int) -> list[Composition]:
    """What the copies of one row run, read off the tree for that row alone."""
    if tree is None or isinstance(tree, str | Fuse | Split):
        return [tree]
    if isinstance(tree, BatchSplit):
        for child, size in zip(tree.children, tree.batch_sizes, strict=True):
            if row < size:
                return of_row(child, row)
            row -= size
    choices = [of_row(child, row) for child in tree.children]
    if isinstance(tree, Parallel):
        return [choice for child in choices for choice in child]
    copies = max(map(len, choices))
    return [rebuilt(tree, [c[copy] if len(c) > 1 else c[0] for c in choices]) for copy in range(copies)]


def of_token(tree: Composition, token: int) -> Composition:
    """What one token runs."""
    if tree is None or isinstance(tree, str | Fuse):
        return tree
    if isinstance(tree, Split):
        for child, size in zip(tree.children, tree.splits, strict=True):
            if token < size:
                return of_token(child, token)
            token -= size
    return rebuilt(tree, [of_token(child, token) for child in tree.children])


def expected_lanes(per_row: list[list[Composition]]) -> list[Lane]:
    return [
        (row, copies[branch])
        for branch in range(max(map(len, per_row)))
        for row, copies in enumerate(per_row)
        if branch < len(copies)
    ]


# -- lowering --


@given(compositions(NAMES, batch=BATCH, tokens=TOKENS))
def test_rows_run_what_the_composition_says_of_them(tree: Composition) -> None:
    lanes = lanes_of(tree, BATCH)
    assert lanes == expected_lanes([of_row(tree, row) for row in range(BATCH)])
    assert {source for source, _ in lanes} == set(range(BATCH))
    assert not any(has(lane, kind) for _, lane in lanes for kind in (Parallel, BatchSplit))
    if not has(tree, Parallel):
        assert [source for source, _ in lanes] == list(range(BATCH))


@given(st.lists(compositions(NAMES, batch=1, tokens=TOKENS), min_size=1, max_size=4))
def test_rows_with_a_composition_each(trees: list[Composition]) -> None:
    assert lanes_of_rows(trees) == expected_lanes([of_row(tree, 0) for tree in trees])


def test_parallel_goes_adapter_by_adapter() -> None:
    assert lanes_of(Parallel("a", "b"), 2) == [(0, "a"), (1, "a"), (0, "b"), (1, "b")]
    tree = parse("Stack(hi, Parallel(a, BatchSplit(b:1, c:1)))")
    assert [str(lane) for _, lane in lanes_of(tree, 2)] == ["Stack(hi, a)"] * 2 + ["Stack(hi, b)", "Stack(hi, c)"]
    ragged = lanes_of_rows([Parallel("a", "b"), "c", Parallel("d", "e", "f")])
    assert ragged == [(0, "a"), (1, "c"), (2, "d"), (0, "b"), (2, "e"), (2, "f")]


@given(rows(NAMES, tokens=TOKENS))
def test_tokens_run_what_the_composition_says_of_them(tree: Composition) -> None:
    runs = runs_of(tree)
    assert not any(has(part, Split) for _, part in runs)
    if not has(tree, Split):
        assert runs == [(None, tree)]
        return
    found = [part for length, part in runs for _ in range(length or 0)]
    assert found == [of_token(tree, token) for token in range(TOKENS)]


@given(st.lists(rows(NAMES, tokens=TOKENS), min_size=1, max_size=4))
def test_every_row_and_token_is_covered_exactly_once(trees: list[Composition]) -> None:
    made = route(lanes_of_rows(trees), None, len(trees), lambda tree: (None,))
    count = torch.zeros(len(trees), TOKENS, dtype=torch.long)
    for group in made.groups:
        rows = torch.arange(len(trees)) if group.rows is None else group.rows
        count[rows.unsqueeze(1), torch.arange(TOKENS)[group.tokens or slice(None)]] += 1
    assert bool((count == 1).all())
    assert made.batch == len(trees)
    assert made.sources is None
    assert made.tokens == (TOKENS if any(has(tree, Split) for tree in trees) else None)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ("BatchSplit(a:1, b:2)", r"BatchSplit\(a:1, b:2\) covers 3 rows, but the batch has 4"),
        ("Stack(a, Parallel(b, BatchSplit(a:5)))", r"BatchSplit\(a:5\) covers 5 rows, but the batch has 4"),
        ("BatchSplit(Stack(BatchSplit(a:1)):2, b:2)", r"BatchSplit\(a:1\) covers 1 rows, but the batch has 2"),
    ],
)
def test_row_counts_must_cover_the_batch(tree: str, message: str) -> None:
    with pytest.raises(CompositionError, match=message):
        lanes_of(parse(tree), 4)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ("Stack(Split(a:1, b:2), Split(a:2))", r"its Splits cover \[2, 3\] tokens, not one number"),
        ("Split(Stack(Split(a:1)):2, b:2)", r"Stack\(Split\(a:1\)\) covers 1 tokens but stands where 2 are split off"),
    ],
)
def test_token_counts_must_agree(tree: str, message: str) -> None:
    with pytest.raises(CompositionError, match=message):
        runs_of(parse(tree))


def test_rows_of_one_batch_are_equally_long() -> None:
    lanes = lanes_of_rows([Split("a", splits=[3]), Split("a", splits=[4])])
    with pytest.raises(
        CompositionError, match=r"the Splits of one batch cover \[3, 4\] tokens; its rows are equally long"
    ):
        route(lanes, None, 2, lambda tree: (None,))


# -- the route at a site --


class Number:
    """A node that changes everything by a number, and remembers what it was given."""

    def __init__(self, number: float, after: bool) -> None:
        self.number, self.after = number, after
        self.seen: list[Reading] = []

    def __call__(self, reading: Reading, delta: Delta) -> Delta:
        assert delta is NO_DELTA
        self.seen.append(reading)
        change = torch.full_like(reading.output, self.number)
        return Delta(after=change) if self.after else Delta(before=change)


def numbered(trees: list[Composition], copies: int = 1) -> tuple[Delta | None, dict[Composition, Number]]:
    nodes: dict[Composition, Number] = {"a": Number(1, False), "b": Number(2, True), "c": Number(3, False)}
    made = route(lanes_of_rows(trees), None, len(trees), lambda tree: (nodes.get(tree),))
    h = torch.arange(len(trees) * copies * 3 * 2.0).reshape(len(trees) * copies, 3, 2)
    return made.delta(0, Reading(h, -h, None)), nodes


def test_each_part_of_a_batch_is_read_and_written_in_its_place() -> None:
    delta, nodes = numbered(["a", None, "b", Split("c", None, splits=[1, 2])])
    assert delta is not None
    assert delta.before is not None
    assert delta.after is not None
    assert delta.before[..., 0].tolist() == [[1, 1, 1], [0, 0, 0], [0, 0, 0], [3, 0, 0]]
    assert delta.after[..., 0].tolist() == [[0, 0, 0], [0, 0, 0], [2, 2, 2], [0, 0, 0]]
    assert nodes["b"].seen[0].output[0, :, 0].tolist() == [12, 14, 16]
    assert nodes["c"].seen[0].residual.tolist() == [[[-18, -19]]]


def test_a_whole_batch_is_not_copied() -> None:
    _, nodes = numbered(["a", "a"])
    assert nodes["a"].seen[0].output.storage_offset() == 0
    assert nodes["a"].seen[0].output.shape == (2, 3, 2)
    assert numbered([None, None])[0] is None


def test_rows_repeated_in_place_follow_their_source() -> None:
    delta, _ = numbered(["a", "c"], copies=3)  # three beams a row
    assert delta is not None
    assert delta.before is not None
    assert delta.before[:, 0, 0].tolist() == [1, 1, 1, 3, 3, 3]


def test_a_route_that_does_not_fit_the_batch_is_refused() -> None:
    node = Number(1, False)
    made = route([(0, "a"), (1, None)], None, 2, lambda tree: (node,))
    with pytest.raises(CompositionError, match="the route is for 2 rows, but the model runs 3"):
        made.delta(0, Reading(torch.zeros(3, 4, 2), torch.zeros(3, 4, 2), None))
    made = route([(0, Split("a", splits=[3]))], None, 1, lambda tree: (node,))
    with pytest.raises(CompositionError, match="Split covers 3 tokens, but the sequence at this site has 4"):
        made.delta(0, Reading(torch.zeros(1, 4, 2), torch.zeros(1, 4, 2), None))


# -- real models --


def one_row(inputs: dict[str, Tensor], row: int) -> dict[str, Tensor]:
    return {key: value[row : row + 1] for key, value in inputs.items()}


IDLE = "key.bias"  # of a fusion: the same for every member, so it leaves the softmax


def reached(rig: Rig, table: str, name: str) -> list[bool]:
    modules = rig.parts.modules_of(table, name).values()
    learning = [[p for key, p in one.named_parameters() if key != IDLE] for one in modules]
    grads = [[p.grad is not None for p in parameters] for parameters in learning]
    assert all(all(module) or not any(module) for module in grads)
    return [all(module) for module in grads]


def in_fusions(tree: Composition) -> set[str]:
    return {name for fuse in fusions(tree) for name in leaves(fuse)}


def check_gradients(rig: Rig, output: Tensor, ran: list[Composition]) -> None:
    """Exactly the routed adapters and fusions receive gradients, at every site where they run."""
    routed = {name for tree in ran for name in leaves(tree)}
    names = {fuse.name for tree in ran for fuse in fusions(tree)}
    fused = {name for tree in ran for name in in_fusions(tree)}
    rig.parts.requires_grad_(True)
    rig.parts.zero_grad(set_to_none=True)
    if not routed:
        assert not output.requires_grad
        return
    (output * torch.linspace(-1, 1, output.shape[-1])).sum().backward()
    for name in rig.parts.adapter_configs:
        sites = reached(rig, "adapters", name)
        assert any(sites) == (name in routed), name
        if name in routed - fused:  # a fusion is silent where one member is missing, and so are its other members
            assert all(sites), name
    for name in rig.parts.fusion_records:
        assert any(reached(rig, "fusions", name)) == (name in names), name


@pytest.mark.parametrize("family", RIGS)
@given(trees=st.lists(rows(NAMES, tokens=TOKENS, depth=2), min_size=2, max_size=BATCH))
def test_a_batch_of_random_compositions_is_its_rows_one_at_a_time(family: str, trees: list[Composition]) -> None:
    rig, inputs = RIGS[family], tiny.inputs(family, rows=len(trees), tokens=TOKENS)
    rig.parts.requires_grad_(True)
    rig.learn_fusions(trees)
    output = rig.run(trees, inputs)
    with torch.no_grad():
        for row, tree in enumerate(trees):
            alone = rig.run(tree, one_row(inputs, row))
            assert relative(output[row : row + 1], alone) < 1e-5
    check_gradients(rig, output, trees)


@pytest.mark.parametrize("family", RIGS)
@given(tree=compositions(NAMES, batch=3, tokens=TOKENS, depth=2))
def test_a_composition_of_the_batch_is_its_rows_one_at_a_time(family: str, tree: Composition) -> None:
    rig, inputs = RIGS[family], tiny.inputs(family, rows=3, tokens=TOKENS)
    rig.learn_fusions([tree])
    with torch.no_grad():
        output = rig.run(tree, inputs)
        lanes = expected_lanes([of_row(tree, row) for row in range(3)])
        assert len(output) == len(lanes)
        for place, (row, alone) in enumerate(lanes):
            assert relative(output[place : place + 1], rig.run(alone, one_row(inputs, row))) < 1e-5


@pytest.mark.parametrize("family", tiny.MAKERS)
def test_mixed_batches_on_every_family(family: str) -> None:
    rig = Rig(family, {"seq": ZOO["seq"], "double": ZOO["double"], "par": ZOO["par"], "plus": ZOO["plus"]})
    trees = [
        parse(text) for text in ("seq", "none", "Stack(double, plus)", "Fuse(par, seq, name=f)", "Average(seq, par)")
    ]
    rig.learn_fusions(trees)
    inputs = tiny.inputs(family, rows=5)
    with torch.no_grad():
        output = rig.run(trees, inputs)
        for row, tree in enumerate(trees):
            assert relative(output[row : row + 1], rig.run(tree, one_row(inputs, row))) < 1e-5
        assert relative(output[1:2], rig.run(None, one_row(inputs, 1))) < 1e-5


def test_how_the_counts_of_a_real_batch_come_out() -> None:
    rig, inputs = RIGS["bert"], tiny.inputs("bert", rows=3)
    assert rig.run(Parallel("seq", "par"), inputs).shape[0] == 6
    assert Counter(source for source, _ in lanes_of(Parallel("seq", "par"), 3)) == {0: 2, 1: 2, 2: 2}
    with pytest.raises(CompositionError, match="Split covers 9 tokens, but the sequence at this site has 7"):
        rig.run(Split("seq", "par", splits=[4, 5]), inputs)
    assert rig.backbone.runtime.route is None


def test_what_a_model_computes_for_all_rows_at_once_cannot_differ_by_row() -> None:
    model = AdapterModel(zoo.model("deberta-v3"))
    model.add_adapter("a", "lora[r=2,attn_matrices=['q','k']]")
    randomise(model.parts.parameters())
    inputs = zoo.inputs("deberta-v3")
    with torch.no_grad():
        found = model.eval()(**inputs, adapters="a")[0]
        with pytest.raises(CompositionError, match="rows of one batch cannot have different adapters: call once for"):
            model(**inputs, adapters=["a", None])
        other = zoo.model("deberta-v3")
        for name, module in model.parts.modules_of("adapters", "a").items():
            place, _, part = name.partition("/attn.")
            linear = other.get_submodule(f"encoder.layer.{place.removeprefix('layer.')}.attention.self.{part}_proj")
            linear.weight += module.weight_change()  # type: ignore[operator]
        torch.testing.assert_close(found, other(**inputs)[0], atol=1e-5, rtol=1e-5)
