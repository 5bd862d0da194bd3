"""What every sort of method composes with, as docs/methods.md says it: each block is run over two of a sort."""

from typing import Any

import pytest
import torch

from graftwork.compose.tree import Average, BatchSplit, Composition, Fuse, Parallel, Split, Stack
from graftwork.core.kinds import NAMED
from graftwork.errors import UserError
from graftwork.model import AdapterModel
from tests import zoo
from tests.house.test_tables import bare, table
from tests.matrix.methods import small
from tests.rig import randomise

ROWS, TOKENS = 2, 9
# sort -> two methods of it; what is true of them is said of every method of the sort
SORTS: dict[str, tuple[str, str]] = {
    "a delta": ("seq_bn", "par_bn"),
    "invertible": ("seq_bn_inv", "double_seq_bn_glow"),
    "prefix": ("prefix_tuning", "prefix_tuning_flat"),
    "prompt": ("prompt_tuning", "prompt_tuning"),
    "union with a prefix": ("mam", "unipelt"),
}
BLOCKS: dict[str, Any] = {
    "Stack": Stack("a", "b"),
    "Fuse": Fuse("a", "b"),
    "Average": Average("a", "b"),
    "Parallel": Parallel("a", "b"),
    "BatchSplit": BatchSplit("a", "b", batch_sizes=[1, 1]),
    "Split": Split("a", "b", splits=[4, 5]),
    "a row": ["a", None],
}


def model(methods: tuple[str, str]) -> AdapterModel:
    made = AdapterModel(zoo.model("bert"))
    for name, method in zip("ab", methods, strict=True):
        made.add_adapter(name, config=small(method))
    randomise(made.parts.parameters())
    return made.eval()


def composes(methods: tuple[str, str], block: Composition | list[str | None]) -> str:
    """Whether a block runs over two adapters of these methods: yes or no."""
    made = model(methods)
    try:
        if isinstance(block, Fuse):
            made.add_adapter_fusion(block)
        with torch.no_grad():
            found = made(**zoo.inputs("bert", rows=ROWS, tokens=TOKENS), adapters=block)[0]
    except UserError:
        return "no"
    assert found.isfinite().all()
    return "yes"


@pytest.mark.parametrize("sort", SORTS)
def test_a_sort_of_method_composes_as_the_page_says(sort: str) -> None:
    rows = {row[0]: row for row in table("methods.md", "## What composes with what")}
    assert list(rows) == list(SORTS)
    said = dict(zip(BLOCKS, (cell.split()[0] for cell in rows[sort][2 : 2 + len(BLOCKS)]), strict=True))
    assert {name: composes(SORTS[sort], block) for name, block in BLOCKS.items()} == said


def test_loras_go_into_every_block_and_beside_bottlenecks_into_all_but_a_fuse() -> None:
    """A Fuse needs a site that its members share; these two have none."""
    assert {composes(("lora", "lora"), block) for block in BLOCKS.values()} == {"yes"}
    assert [name for name, block in BLOCKS.items() if composes(("seq_bn", "lora"), block) == "no"] == ["Fuse"]


def test_the_page_has_every_method_under_one_sort() -> None:
    named = [bare(name) for row in table("methods.md", "## What composes with what") for name in row[1].split(", ")]
    assert sorted(named) == sorted(NAMED)
