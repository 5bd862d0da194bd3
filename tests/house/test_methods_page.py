"""Law: the tables of methods and families say what the code says: names, parameters, checks, places, refusals."""

import re
from functools import cache

import torch
from transformers import AutoConfig, AutoModel

from graftwork.compose.parts import Parts
from graftwork.core.backbone import Backbone, load_skeleton
from graftwork.core.kinds import NAMED, read_config
from graftwork.core.papers import PAPERS
from graftwork.core.shapes import SHAPES
from graftwork.describe import families
from graftwork.errors import AdapterError
from tests.house.test_tables import bare, table
from tests.matrix.methods import FAMILIES, METHODS, REFUSED, refusal
from tests.shared import ROOT


@cache
def counted(name: str, layers: int | None = None) -> dict[str, int]:
    """Method -> its parameters on a model, or on one of so many layers; 0 where it is refused."""
    if layers is None:
        backbone = Backbone(load_skeleton(name))
    else:
        model_type, fields = SHAPES[name]
        with torch.device("meta"):
            config = AutoConfig.for_model(model_type, **{**fields, "num_hidden_layers": layers})
            backbone = Backbone(AutoModel.from_config(config))
    found = {}
    for method in NAMED:
        parts = Parts()
        try:
            with torch.device("meta"):
                parts.add_adapter("one", read_config(method), backbone)
        except AdapterError:
            found[method] = 0
            continue
        found[method] = parts.count("adapters", "one")
    return found


def on_llama() -> dict[str, int]:
    """The same for all layers of Llama-3-8B, from what its first two layers have: they are all of one shape."""
    name = "meta-llama/Meta-Llama-3-8B"
    one, two = counted(name, 1), counted(name, 2)
    more = SHAPES[name][1]["num_hidden_layers"] - 1
    return {method: one[method] + more * (two[method] - one[method]) for method in NAMED}


def shown(count: int) -> str:
    return f"{count:,}" if count else "refused"


def test_each_method_has_its_paper_its_numbers_and_its_check() -> None:
    rows = table("methods.md", "## Methods")
    assert [bare(row[0]) for row in rows] == list(NAMED) == list(PAPERS)
    assert {bare(row[0]): row[2] for row in rows} == {k: shown(v) for k, v in counted("bert-base-uncased").items()}
    assert {bare(row[0]): row[3] for row in rows} == {k: shown(v) for k, v in on_llama().items()}
    assert all((ROOT / "tests" / "core" / f"{bare(row[4])}.py").is_file() for row in rows)


def test_what_is_tried_and_what_is_refused() -> None:
    text = (ROOT / "docs" / "methods.md").read_text("utf8")
    refused = sum(refusal(method, family) is not None for method in METHODS for family in FAMILIES)
    pairs = len(METHODS) * len(FAMILIES)
    found = re.search(
        r"(\d+) methods on (\d+) tiny models.*?: ([\d,]+) pairs, ([\d,]+) supported, (\d+) refused", text, re.S
    )
    assert found is not None
    assert found.groups() == (
        *(str(len(METHODS)), str(len(FAMILIES)), f"{pairs:,}", f"{pairs - refused:,}", str(refused)),
    )
    rows = table("methods.md", "### Refused")
    assert [tuple(re.findall(r"`([^`]+)`", row[0])) for row in rows] == list(REFUSED)
    assert [int(row[1]) for row in rows] == [len(where) for where, _ in REFUSED.values()]


def test_the_table_of_families() -> None:
    def said(value: object) -> str:
        if isinstance(value, list):
            return ", ".join(value) or "–"
        return {True: "yes", False: "no"}.get(value, "–")  # type: ignore[call-overload, no-any-return]

    rows = table("families.md", "## Table")
    columns = ("norm", "stacks", "sub-layers", "linears", "kv", "embed", "prompt")
    assert [re.findall(r"`([^`]+)`", row[0]) for row in rows] == [row["model types"] for row in families()["families"]]
    for row, real in zip(rows, families()["families"], strict=True):
        assert row[1:8] == [said(real.get(column)) for column in columns], row[0]
