"""AdapterHub's LoRA, DoRA, VeRA and (IA)³: every number is where it was, compared as the matrix that it makes."""

from pathlib import Path
from typing import Any

import pytest
import torch

from graftwork.errors import PackageError
from graftwork.registry.foreign.adapterhub import read_adapterhub
from graftwork.registry.foreign.imported import Facts, Imported, Place
from tests.registry.foreign.hub_files import WIDTH, meta, rand, write

LORA = {"architecture": "lora", "r": 2, "alpha": 2, "attn_matrices": ["q", "v"]}
SELF = "encoder.layer.0.attention.self."


def one(folder: Path) -> Imported:
    (found,) = read_adapterhub(folder)
    return found


def pair(place: str, rank: int = 2, outputs: int = WIDTH) -> dict[str, torch.Tensor]:
    return {f"{place}.loras.a.lora_A": rand(rank, WIDTH), f"{place}.loras.a.lora_B": rand(outputs, rank)}


def test_a_lora_names_its_linears_by_its_tensors(tmp_path: Path) -> None:
    up = "encoder.layer.0.intermediate.dense"
    theirs = pair(SELF + "query") | pair(SELF + "value") | pair(up, outputs=16)
    found = one(write(tmp_path / "a", meta(LORA | {"intermediate_lora": True}), theirs))
    assert found.sites == ("layer.0/attn.query", "layer.0/attn.value", "layer.0/ffn.up")
    assert found.method is not None
    assert (found.method["kind"], found.method["attn_matrices"]) == ("lora", ["q", "v"])
    assert (found.method["intermediate_lora"], found.method["output_lora"]) == (True, False)
    assert torch.equal(found.tensors["adapter/layer.0/ffn.up/b"], theirs[f"{up}.loras.a.lora_B"])


def test_llama_swaps_two_names_and_the_tensors_say_so(tmp_path: Path) -> None:
    theirs = pair("layers.0.mlp.down_proj")
    found = one(write(tmp_path / "a", meta(LORA | {"intermediate_lora": True}, model_type="llama"), theirs))
    assert found.sites == ("layer.0/ffn.down",)
    assert found.method is not None
    assert (found.method["intermediate_lora"], found.method["output_lora"]) == (False, True)
    assert any("down_proj" in note for note in found.notes)


@pytest.mark.parametrize(
    ("version", "alpha"),
    [
        ("adapters.0.1.0", 2),
        ("adapters.1.0.1", 2),
        ("adapters.1.1.0", 16),
        ("adapters.1.3.0", 16),
        ("adapters.1.10.0", 16),
        ("3.2.1", 16),
        ("absent", 16),
    ],
)
def test_alpha_had_no_effect_before_1_1(tmp_path: Path, version: str, alpha: int) -> None:
    found = one(write(tmp_path / "a", meta(LORA | {"alpha": 16}, version=version), pair(SELF + "query")))
    assert found.method is not None
    assert found.method["alpha"] == alpha
    assert bool(found.notes) == (alpha == 2)


@pytest.mark.parametrize("letters", [["q", "v"], ["q", "k", "v"], ["k"]])
def test_a_merged_projection_is_cut_into_parts(tmp_path: Path, letters: list[str]) -> None:
    count = len(letters)
    a, b = rand(2 * count, WIDTH), rand(WIDTH * count, 2)
    place = "transformer.h.0.attn.c_attn.loras.a."
    gates = {f"{place}gate.weight": rand(count, WIDTH), f"{place}gate.bias": rand(count)}
    config = LORA | {"attn_matrices": letters, "use_gating": True}
    theirs = {f"{place}lora_A": a, f"{place}lora_B": b} | gates
    found = one(write(tmp_path / "a", meta(config, model_type="gpt2"), theirs))
    x = rand(5, WIDTH)
    # a grouped convolution of width one, which is what AdapterHub runs
    after = torch.nn.functional.conv1d((x @ a.T).T[None], b[..., None], groups=count)[0].T  # (5, WIDTH·count)
    names = {"q": "query", "k": "key", "v": "value"}
    for number, letter in enumerate(letters):
        site = f"adapter/layer.0/attn.{names[letter]}/"
        own = x @ found.tensors[site + "a"].T @ found.tensors[site + "b"].T
        torch.testing.assert_close(own, after[:, number * WIDTH : (number + 1) * WIDTH])
        assert found.tensors[site + "gate.weight"].shape == (1, WIDTH)
    assert {fate.source for fate in found.fates} == theirs.keys()


@pytest.mark.parametrize("letters", [["q", "v"], ["k"]])
def test_debertas_thirds_are_parts_of_query_key_and_value(tmp_path: Path, letters: list[str]) -> None:
    """One matrix (3·D, D) by AdapterHub's own scatter, and ours of the three sites put back where heads have them."""
    count, heads = len(letters), 2
    place = "deberta.encoder.layer.0.attention.self.in_proj.loras.a."
    theirs = {f"{place}lora_A": rand(2 * count, WIDTH), f"{place}lora_B": rand(WIDTH * count, 2)}
    rows = torch.arange(3 * WIDTH).view(heads, 3, -1)
    kinds = ("attn.query", "attn.key", "attn.value")
    sites = tuple(Place(f"layer.0/{k}", 0, WIDTH, WIDTH, rows[:, n].reshape(-1)) for n, k in enumerate(kinds))
    known = Facts(places={"encoder.layer.0.attention.self.in_proj": sites})
    folder = write(tmp_path / "a", meta(LORA | {"attn_matrices": letters, "alpha": 6}, model_type="deberta"), theirs)
    (found,) = read_adapterhub(folder, facts=known)
    grouped = torch.nn.functional.conv1d(
        theirs[f"{place}lora_A"][None], theirs[f"{place}lora_B"][..., None], groups=count
    )[0]
    whole = torch.zeros(3, WIDTH, WIDTH)
    whole["qkv".index(letters[0]) :: 2][:count] = 3 * grouped.view(count, WIDTH, WIDTH)
    assert found.method is not None
    scale = found.method["alpha"] / found.method["r"]
    ours = torch.zeros(3 * WIDTH, WIDTH)
    for site in sites:
        ours[site.rows] = scale * found.tensors[f"adapter/{site.site}/b"] @ found.tensors[f"adapter/{site.site}/a"]
    torch.testing.assert_close(ours, whole.flatten(0, 1))
    with pytest.raises(PackageError, match="head by head: give the base"):
        read_adapterhub(folder)


@pytest.mark.parametrize("dora", [False, True])
def test_vera_becomes_the_lora_that_it_equals(tmp_path: Path, dora: bool) -> None:
    place = SELF + "query.loras.a."
    own = {f"{place}vera_D": rand(2, 2), f"{place}vera_B": rand(WIDTH, WIDTH)}
    own |= {f"{place}m.weight": rand(WIDTH, 1)} if dora else {}
    shared = {"bert.shared_parameters.a.lora_A": rand(2, WIDTH), "bert.shared_parameters.a.lora_B": rand(WIDTH, 2)}
    config = LORA | {"vera_d": 0.1, "vera_b": 0.0, "use_dora": dora, "init_weights": "vera"}
    found = one(write(tmp_path / "a", meta(config), own | shared))
    theirs = own[f"{place}vera_B"] @ shared["bert.shared_parameters.a.lora_B"] @ own[f"{place}vera_D"]
    theirs = theirs @ shared["bert.shared_parameters.a.lora_A"]
    site = "adapter/layer.0/attn.query/"
    torch.testing.assert_close(found.tensors[site + "b"] @ found.tensors[site + "a"], theirs)
    assert found.method is not None
    assert found.method["kind"] == ("dora" if dora else "lora")
    assert (site + "magnitude" in found.tensors) == dora
    assert {fate.source for fate in found.fates} == own.keys() | shared.keys()
    with pytest.raises(PackageError, match="from a bare model"):
        read_adapterhub(write(tmp_path / "b", meta(config), own))


def test_ia3_and_dora(tmp_path: Path) -> None:
    place = SELF + "key.loras.a."
    config = LORA | {"composition_mode": "scale", "r": 1, "alpha": 1, "attn_matrices": ["k"], "init_weights": "ia3"}
    found = one(write(tmp_path / "a", meta(config), {f"{place}lora_B": rand(WIDTH, 1)}))
    assert torch.equal(found.tensors["adapter/layer.0/attn.key/scale"], rand(WIDTH, 1)[:, 0])
    assert found.method is not None
    assert found.method["kind"] == "ia3"
    assert found.method["attn_matrices"] == ["k"]
    twice = one(write(tmp_path / "c", meta(config | {"alpha": 2}), {f"{place}lora_B": rand(WIDTH, 1)}))
    assert twice.method is not None
    assert twice.method["alpha"] == 2
    theirs = pair(SELF + "query") | {SELF + "query.loras.a.m.weight": rand(WIDTH, 1)}
    found = one(write(tmp_path / "b", meta(LORA | {"use_dora": True}), theirs))
    assert found.tensors["adapter/layer.0/attn.query/magnitude"].shape == (WIDTH,)
    assert found.method is not None
    assert found.method["variant"] == "adapters"


@pytest.mark.parametrize("change", [{"surprise": 1}, {"composition_mode": "divide"}])
def test_what_is_not_understood_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(PackageError, match=r"surprise|divide"):
        read_adapterhub(write(tmp_path / "a", meta(LORA | change), pair(SELF + "query")))


def test_half_a_pair_is_refused(tmp_path: Path) -> None:
    theirs = pair(SELF + "query")
    theirs.pop(SELF + "query.loras.a.lora_B")
    with pytest.raises(PackageError, match="lora_B is missing"):
        read_adapterhub(write(tmp_path / "a", meta(LORA), theirs))


def test_alpha_of_an_ia3_reaches_every_part_of_a_merged_linear(tmp_path: Path) -> None:
    scale = {"architecture": "lora", "r": 1, "alpha": 2, "attn_matrices": ["k"], "composition_mode": "scale"}
    theirs = {"h.0.attn.c_attn.loras.a.lora_B": rand(WIDTH, 1)}
    found = one(write(tmp_path / "a", meta(scale, model_type="gpt2"), theirs))
    assert torch.equal(found.tensors["adapter/layer.0/attn.query/scale"], torch.ones(WIDTH))
    assert torch.equal(found.tensors["adapter/layer.0/attn.key/scale"], theirs["h.0.attn.c_attn.loras.a.lora_B"][:, 0])
    assert found.method is not None
    assert found.method["attn_matrices"] == ["q", "k", "v"]
    plain = one(write(tmp_path / "b", meta(scale | {"alpha": 1}, model_type="gpt2"), theirs))
    assert plain.sites == ("layer.0/attn.key",)


def test_debertas_other_linears_take_the_rank_of_its_projection(tmp_path: Path) -> None:
    linear, projection = "encoder.layer.0.intermediate.dense", SELF + "in_proj"
    theirs = pair(linear, outputs=16)
    theirs |= {f"{projection}.loras.a.lora_A": rand(4, WIDTH), f"{projection}.loras.a.lora_B": rand(2 * WIDTH, 2)}
    places = tuple(Place(f"layer.0/attn.{part}", 0, WIDTH, WIDTH) for part in ("query", "key", "value"))
    facts = Facts(places={projection: places})
    (found,) = read_adapterhub(
        write(tmp_path / "a", meta(LORA | {"intermediate_lora": True}, model_type="deberta"), theirs), facts=facts
    )
    a, b = (found.tensors[f"adapter/layer.0/ffn.up/{name}"] for name in "ab")
    assert a.shape == (4, WIDTH)
    torch.testing.assert_close(b @ a, theirs[f"{linear}.loras.a.lora_B"] @ theirs[f"{linear}.loras.a.lora_A"])
    assert found.method is not None
    assert (found.method["r"], found.method["alpha"]) == (4, 4)
