"""ReFT and prompts of AdapterHub; the orthogonal projection against torch's own parametrisation."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from graftwork.errors import PackageError
from graftwork.registry.foreign.adapterhub import read_adapterhub
from graftwork.registry.foreign.imported import Imported
from graftwork.registry.foreign.reft import orthogonal
from tests.registry.foreign.hub_files import WIDTH, meta, rand, write

REFT = {
    "architecture": "reft",
    "layers": "all",
    "prefix_positions": 3,
    "suffix_positions": 1,
    "r": 2,
    "orthogonality": False,
}
AT = "bert.encoder.layer.0.reft_layer.refts.a.units."


def one(folder: Path, **options: Any) -> Imported:
    (found,) = read_adapterhub(folder, **options)
    return found


@pytest.mark.parametrize("rank", [1, 3, 7, 8])
def test_the_matrix_of_an_orthogonal_parametrisation(rank: int) -> None:
    torch.manual_seed(rank)
    linear = nn.utils.parametrizations.orthogonal(nn.Linear(8, rank, bias=False))
    with torch.no_grad():
        linear.parametrizations.weight.original.add_(0.3 * torch.randn(rank, 8))
    state = linear.state_dict()
    made = orthogonal(state["parametrizations.weight.original"], state["parametrizations.weight.0.base"])
    torch.testing.assert_close(made, linear.weight.detach())


def units(projection: str) -> dict[str, torch.Tensor]:
    theirs = {}
    for unit in "01":
        theirs |= {f"{AT}{unit}.learned_source.weight": rand(2, WIDTH), f"{AT}{unit}.learned_source.bias": rand(2)}
        if projection == "plain":
            theirs[f"{AT}{unit}.projection.weight"] = rand(2, WIDTH)
        else:
            linear = nn.utils.parametrizations.orthogonal(nn.Linear(WIDTH, 2, bias=False))
            theirs |= {f"{AT}{unit}.projection.{key}": value for key, value in linear.state_dict().items()}
    return theirs


@pytest.mark.parametrize("projection", ["plain", "orthogonal"])
def test_a_reft(tmp_path: Path, projection: str) -> None:
    theirs = units(projection)
    config = REFT | {"orthogonality": projection == "orthogonal"}
    found = one(write(tmp_path / "a", meta(config), theirs))
    assert found.sites == ("layer.0/ffn",)
    assert {fate.source for fate in found.fates} == theirs.keys()
    assert {name.rpartition("ffn/")[2] for name in found.tensors} == {
        f"{side}.{leaf}" for side in ("prefix", "suffix") for leaf in ("source.weight", "source.bias", "projection")
    }
    rows = found.tensors["adapter/layer.0/ffn/suffix.projection"]
    if projection == "orthogonal":
        torch.testing.assert_close(rows @ rows.T, torch.eye(2))


def test_a_unit_that_is_never_used_is_left_out(tmp_path: Path) -> None:
    found = one(write(tmp_path / "a", meta(REFT | {"suffix_positions": 0}), units("plain")))
    assert not any("suffix" in name for name in found.tensors)
    assert {fate.source.split(".units.")[1][0] for fate in found.fates if not fate.target} == {"1"}


@pytest.mark.parametrize(("said", "used"), [(None, True), (True, True), (False, False)])
def test_the_file_cannot_say_whether_the_projection_is_subtracted(
    tmp_path: Path, said: bool | None, used: bool
) -> None:
    found = one(write(tmp_path / "a", meta(REFT), units("plain")), subtract_projection=said)
    assert found.method is not None
    assert found.method["subtract_projection"] is used
    assert any("DiReFT" in note for note in found.notes) == (said is None)


def test_a_file_that_says_it_is_believed(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", meta(REFT | {"subtract_projection": False}), units("plain"))
    method = one(folder).method
    assert method is not None
    assert method["subtract_projection"] is False
    with pytest.raises(PackageError, match="subtract_projection"):
        read_adapterhub(folder, subtract_projection=True)


def test_a_base_that_is_missing_is_named(tmp_path: Path) -> None:
    theirs = units("orthogonal")
    theirs.pop(f"{AT}1.projection.parametrizations.weight.0.base")
    with pytest.raises(PackageError, match="base' is missing"):
        read_adapterhub(write(tmp_path / "a", meta(REFT | {"orthogonality": True}), theirs))


def test_a_prompt(tmp_path: Path) -> None:
    config = {"architecture": "prompt_tuning", "prompt_length": 4, "combine": "prefix_after_bos"}
    theirs = {"bert.prompt_tuning.prompt_tunings.a.prompt_embedding.weight": rand(4, WIDTH)}
    found = one(write(tmp_path / "a", meta(config), theirs))
    assert torch.equal(found.tensors["adapter/prompt/embedding"], rand(4, WIDTH))
    assert found.method is not None
    assert found.method["combine"] == "prefix_after_bos"
