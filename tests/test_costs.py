"""What `graftwork show` says of a composition's execution, against the arithmetic; no weights are read."""

from pathlib import Path
from typing import Any

import pytest

from graftwork.compose.grammar import parse
from graftwork.costs import costs
from graftwork.describe import describe
from graftwork.model import AdapterModel
from graftwork.registry.store import Registry
from tests import tiny

D, M = 32, 2


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Registry, str]:
    """A registry with adapters, fusions of them, and the folder of their base."""
    root = tmp_path_factory.mktemp("costs")
    model = AdapterModel(tiny.model("bert"))
    model.base.config.save_pretrained(root / "base")
    registry = Registry(root / "registry")
    for name, config in {"a": "seq_bn", "b": "seq_bn", "c": "seq_bn[ln_before=True]", "low": "lora[r=2]"}.items():
        model.add_adapter(name, config)
    for members in ("a,b", "a,c"):
        model.add_adapter_fusion(members)
    for name in ("a", "b", "c", "low", "a,b", "a,c"):
        model.save_adapter(root / name, name)
        registry.push(root / name, name.replace(",", ""))
    return registry, str(root / "base")


def rows(stored: tuple[Registry, str], text: str) -> list[dict[str, Any]]:
    registry, base = stored
    found = describe(text, registry, model=base)["execution"]
    assert isinstance(found, list), found
    return found


def test_a_fusion_is_counted_folded_by_the_reference_and_against_its_layer(stored: tuple[Registry, str]) -> None:
    (row,) = rows(stored, "Fuse(a, b, name=ab)")
    features = 2 * M
    assert row["multiplications"] == 3 * features * D + 2 * 2 * D + features * 2 + 2 * (features + 2)
    assert row["by the reference alone"] == 2 * features * D + 3 * D * D + 2 * 2 * D
    config = tiny.model("bert").config
    layer = 4 * D * D + 2 * D * config.intermediate_size
    assert row["matrices of the layer"] == layer
    assert row["percent of the layer"] == round(100 * row["multiplications"] / layer, 2)
    assert (row["site"], row["layers"], row["folded"]) == ("ffn", config.num_hidden_layers, ["Fuse(a, b, name=ab)"])
    assert row["by the reference"] == row["written out"] == ""
    assert row["bytes"] > 4 * row["multiplications"]


def test_what_is_written_out_and_what_does_not_fold_says_why(stored: tuple[Registry, str]) -> None:
    (stacked,) = rows(stored, "Stack(a, b)")
    assert stacked["written out"] == "the norm of the site reads the stream after a"
    (kept,) = rows(stored, "Fuse(a, c, name=ac)")
    reason = "Fuse(a, c, name=ac): c has a norm of its own (ln_before), which is not linear"
    assert (kept["by the reference"], kept["folded"]) == (reason, [])
    assert kept["multiplications"] == kept["by the reference alone"]
    sub, linear, _ = rows(stored, "Stack(low, a)")
    assert (linear["site"], sub["site"], sub["folded"], sub["bytes"]) == ("attn.query", "ffn", ["Stack(low, a)"], 0)
    assert "only sub-layer sites with a plain residual add fold" in linear["by the reference"]


def test_a_fusion_without_a_package_is_counted_as_a_dynamic_one(stored: tuple[Registry, str]) -> None:
    kept, assumed = (rows(stored, text)[0] for text in ("Fuse(a, b, name=ab)", "Fuse(a, b)"))
    assert assumed | {"composition": "", "folded": []} == kept | {"composition": "", "folded": []}
    described = describe("Stack(a, Fuse(a, b))", stored[0], model=stored[1])
    said = "counted as a dynamic one, for without a name it is no package; name=... means a stored one"
    assert described["fusions"] == [{"name": "a,b", "note": said}]
    (named,) = describe("Fuse(a, b, name=ab)", stored[0], model=stored[1])["fusions"]
    assert named["reference"] == "ab@1"


def test_routing_has_rows_for_every_branch(stored: tuple[Registry, str]) -> None:
    assert [row["composition"] for row in rows(stored, "Parallel(a, Fuse(a, b, name=ab), none)")] == [
        "a",
        "Fuse(a, b, name=ab)",
    ]
    assert [row["composition"] for row in rows(stored, "BatchSplit(a:2, Split(a:3, b:4):1)")] == ["a", "b"]


def test_where_rows_become_lanes_is_said_of_a_parallel_alone(stored: tuple[Registry, str], tmp_path: Path) -> None:
    registry, base = stored
    for text, where in (
        (
            "Parallel(a, Fuse(a, b, name=ab), none)",
            "3 lanes of 1 row share 1 of 3 layers and part at the norm in which",
        ),
        ("Parallel(a, a)", "2 lanes of 1 row share all 3 layers"),
        ("Parallel(low, none)", "rows are repeated at the entry of the model, 2 for 1"),
        ("BatchSplit(Parallel(a, b):1, none:1)", "3 lanes of 2 rows share 1 of 3 layers and part at the norm"),
    ):
        assert describe(text, registry, model=base)["lanes"].startswith(where)
    assert "lanes" not in describe("Stack(a, b)", registry, model=base)


def test_what_is_not_known_is_said(stored: tuple[Registry, str], tmp_path: Path) -> None:
    registry, base = stored
    for text, model, reason in (
        ("Stack(a, nobody)", base, "not known: no package 'nobody'"),
        ("Fuse(a, b, name=a)", base, "not known: a@1 holds no fusion"),
        ("Fuse(a, b, name=none-such)", base, "not known: no package 'none-such'"),
        ("Stack(a, b)", str(tmp_path), "not known: cannot load"),
    ):
        said = describe(text, registry, model=model)["execution"]
        assert isinstance(said, str)
        assert said.startswith(reason), said


def test_packages_that_are_read_as_adapters_reads_them_fold_where_that_is_the_same(
    stored: tuple[Registry, str],
) -> None:
    base = stored[1]
    model = AdapterModel(tiny.model("bert"))
    manifests = {}
    for name, config in {"a": "seq_bn", "b": "seq_bn", "p": "par_bn"}.items():
        model.add_adapter(name, config)
        manifests[name] = model.package(name).manifest.model_copy(update={"semantics": "adapters-1"})
    (row,) = costs(parse("Average(a, b)"), manifests, base)
    assert (row["folded"], row["by the reference"]) == (["Average(a, b)"], "")
    (row,) = costs(parse("Stack(a, p)"), manifests, base)
    reason = "it is read as `adapters` reads it, which differs from ours here (semantics: adapters-1)"
    assert row["by the reference"] == reason
