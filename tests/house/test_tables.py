"""Law: a table in the pages says what the code says: flags and defaults, recipe keys, nesting, manifest."""

import dataclasses
import json
import re

import pytest
from pydantic import BaseModel

from graftwork.compose.tree import BLOCKS, Average, BatchSplit, Block, Composition, Fuse, Parallel, Split, Stack
from graftwork.core.bottleneck import BottleneckConfig
from graftwork.core.heads import KINDS
from graftwork.core.kinds import NAMED
from graftwork.core.spellings import ALIASES
from graftwork.errors import CompositionError
from graftwork.manifest import IDENTITY, Manifest
from graftwork.model import AdapterModel
from graftwork.recipe import Recipe
from graftwork.schema.conflicts import FIELDS
from graftwork.schema.methods import KEY, METHODS
from graftwork.schema.sections import ADAPTER_FLAGS
from graftwork.tasks.kinds import TASKS
from tests.shared import ROOT


def table(page: str, heading: str) -> list[list[str]]:
    """The rows of the first table below a heading of docs/<page>, cell by cell, without its header."""
    text = (ROOT / "docs" / page).read_text("utf8")
    assert f"\n{heading}\n" in text, f"docs/{page} has no heading {heading!r}"
    lines = text.split(f"\n{heading}\n")[1].splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("|---"))
    rows = []
    for line in lines[start + 1 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def bare(cell: str) -> str:
    return cell.strip("`")


def defaults(section: type[BaseModel]) -> dict[str, str]:
    """Each key of a recipe's section with its default as YAML writes it, `required` where there is none."""
    found = {}
    for key, field in section.model_fields.items():
        plain = json.loads(json.dumps(field.default if field.default_factory is None else None, default=str))
        found[key] = "required" if field.is_required() else (plain if isinstance(plain, str) else json.dumps(plain))
    return found


def stated(page: str, heading: str) -> dict[str, str]:
    return {bare(row[0]): bare(row[1]) for row in table(page, heading)}


SECTIONS = [name for name, field in Recipe.model_fields.items() if isinstance(field.annotation, type)]
SECTIONS = [name for name in SECTIONS if issubclass(Recipe.model_fields[name].annotation, BaseModel)]  # type: ignore[arg-type]


@pytest.mark.parametrize("name", SECTIONS)
def test_recipe_keys_and_defaults(name: str) -> None:
    section = Recipe.model_fields[name].annotation
    assert isinstance(section, type)
    real = defaults(section)
    if name == "adapter":
        real = {key: value for key, value in real.items() if key not in (*ADAPTER_FLAGS, "variant")}
    if name == "data":
        real["columns"] = "{}"
    assert stated("recipes.md", f"## `{name}`") == real


def test_the_top_of_a_recipe() -> None:
    assert {*stated("recipes.md", "## Top"), *SECTIONS} == {*Recipe.model_fields, KEY}


def test_bottleneck_flags_and_defaults() -> None:
    plain = {field.name: field.default for field in dataclasses.fields(BottleneckConfig)}
    real = {name: json.dumps(list(value) if isinstance(value, tuple) else value) for name, value in plain.items()}
    assert stated("adapters.md", "### Flags") == real
    assert {*ADAPTER_FLAGS} <= {*real}  # the others are written under `options`


def changes(config: BottleneckConfig) -> dict[str, str]:
    """The flags of a configuration that are not at their default."""
    plain, real = dataclasses.asdict(BottleneckConfig()), dataclasses.asdict(config)
    return {key: str(value) for key, value in real.items() if value != plain[key]}


def test_named_configurations() -> None:
    rows = table("adapters.md", "### Named configurations")
    assert {bare(row[1]): bare(row[0]) for row in rows if row[1]} == ALIASES
    bottlenecks = [name for name, config in NAMED.items() if isinstance(config, BottleneckConfig)]
    assert [bare(row[0]) for row in rows] == bottlenecks
    others = [bare(row[0]) for row in table("adapters.md", "## Beside the bottleneck")]
    assert others == [name for name in NAMED if name not in bottlenecks]
    written: dict[str, str] = {}
    for name, _, flags, *_ in rows:
        inherited = written if "those of" in flags else {}
        written = inherited | dict(pair.split("=") for pair in re.findall(r"\w+=(?:\(.*?\)|[\w.]+)", flags))
        config = NAMED[bare(name)]
        assert isinstance(config, BottleneckConfig)
        assert written == changes(config)


def member(kind: str) -> Composition:
    made: dict[str, Composition] = {
        "name": "a",
        "none": None,
        "Stack": Stack("a", "b"),
        "Fuse": Fuse("a", "b"),
        "Average": Average("a", "b"),
        "Parallel": Parallel("a", "b"),
        "Split": Split("a", "b", splits=[2, 2]),
        "BatchSplit": BatchSplit("a", "b", batch_sizes=[2, 2]),
    }
    return made[kind]


def holds(outer: str, inner: str) -> str:
    """Whether a block can be written around a member: yes or no."""
    numbers = {"Split": {"splits": [4, 4]}, "BatchSplit": {"batch_sizes": [4, 4]}}.get(outer, {})
    kind: type[Block] = BLOCKS[outer]
    try:
        kind(member(inner), "z", **numbers)
    except CompositionError:
        return "no"
    return "yes"


def test_nesting() -> None:
    inner = ["name", "none", *BLOCKS]
    found = {
        row[0]: dict(zip(inner, row[1:], strict=True)) for row in table("compositions.md", "## What may hold what")
    }
    assert found == {outer: {kind: holds(outer, kind) for kind in inner} for outer in BLOCKS}


def test_the_manifest() -> None:
    rows = table("format.md", "## Manifest")
    said = {key: row[1] for row in rows for key in re.findall(r"`(\w+)`", row[0])}
    assert {*said} == {*Manifest.model_fields}
    bearing = {path.split(".")[0] for path in IDENTITY}
    assert {key for key, word in said.items() if word.startswith("yes")} == bearing


def test_a_table_that_is_not_there_is_noticed() -> None:
    with pytest.raises(AssertionError, match="no heading '## Nowhere'"):
        table("format.md", "## Nowhere")
    assert holds("Fuse", "none") == "no"
    assert holds("Fuse", "Stack") == "yes"


def test_the_kinds_of_task() -> None:
    rows = table("recipes.md", "### Kinds of task")
    assert [bare(row[0]) for row in rows] == list(FIELDS) == list(TASKS)
    for kind, (_, form, _, scores) in zip(FIELDS, rows, strict=True):
        assert set(re.findall(r"\w+", form)) >= set(FIELDS[kind])
        labels = ("O", "B-x") if kind == "tagging" else ("a", "b")
        assert TASKS[kind](labels=labels if TASKS[kind].has_labels else ()).main_score == scores.split()[0].strip(",;")


def test_the_score_of_every_kind_of_task() -> None:
    said = {
        kind: row[1] for row in table("compare.md", "### What `score` is") for kind in re.findall(r"`(\w+)`", row[0])
    }
    assert {*said} == {*TASKS}
    for kind, score in said.items():
        labels = ("O", "B-x") if kind == "tagging" else ("a", "b")
        assert (
            bare(score.split()[0].rstrip(",:"))
            == TASKS[kind](labels=labels if TASKS[kind].has_labels else ()).main_score
        )


def test_the_kinds_of_head() -> None:
    rows = table("heads.md", "## Kinds")
    assert [bare(row[0]) for row in rows] == list(KINDS)
    methods = {name for row in rows for name in re.findall(r"add_\w+_head", row[1])}
    assert methods == {name for name in vars(AdapterModel) if re.fullmatch(r"add_\w+_head", name)}


def test_methods_compared_and_their_rates() -> None:
    rows = {bare(row[0]): (float(row[2]), int(row[3])) for row in table("compare.md", "## Methods") if row[2]}
    assert rows == {name: (method.learning_rate, method.epochs) for name, method in METHODS.items()}
