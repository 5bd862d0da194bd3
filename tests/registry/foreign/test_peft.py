"""PEFT's files, read: every module's matrix is what PEFT would add, whatever its rank, alpha or orientation."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from graftwork.errors import NotFound, PackageError
from graftwork.registry.foreign.imported import Asserted, Facts, Place, to_package
from graftwork.registry.foreign.llm_adapters import read_llm_adapters
from graftwork.registry.foreign.peft import read_peft
from tests.registry.foreign.hub_files import WIDTH, rand

BASE = Asserted("bert", WIDTH, "bert-tiny")
LINEARS = {"attention.self.query": "attn.query", "attention.self.value": "attn.value", "output.dense": "ffn.down"}


def facts(layers: int = 2) -> Facts:
    """The linears of a small BERT."""
    return Facts(
        places={
            f"encoder.layer.{n}.{path}": (Place(f"layer.{n}/{kind}", n, WIDTH, WIDTH),)
            for n in range(layers)
            for path, kind in LINEARS.items()
        }
    )


def pair(path: str, rank: int = 2, outputs: int = WIDTH) -> dict[str, torch.Tensor]:
    key = f"base_model.model.{path}."
    return {f"{key}lora_A.weight": rand(rank, WIDTH) + len(path), f"{key}lora_B.weight": rand(outputs, rank)}


def write(folder: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor], kind: str = "LORA") -> Path:
    folder.mkdir()
    plain = {"peft_type": kind, "bias": "none", "r": 2, "lora_alpha": 4, "megatron_core": "megatron.core"}
    plain |= {"runtime_config": {"ephemeral_gpu_offload": False}, "qalora_group_size": 16, "lora_bias": False}
    (folder / "adapter_config.json").write_text(json.dumps(plain | config))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def matrix(tensors: Any, site: str, method: Any) -> torch.Tensor:
    """alpha/r · B·A, as our LoRA adds it."""
    product: torch.Tensor = tensors[f"adapter/{site}/b"] @ tensors[f"adapter/{site}/a"]
    return product * method["alpha"] / method["r"]


QUERY = "bert.encoder.layer.{}.attention.self.query"


@pytest.mark.parametrize("prefix", ["bert.", ""])
def test_a_lora_of_all_layers(tmp_path: Path, prefix: str) -> None:
    theirs = {k: v for n in range(2) for k, v in pair(f"{prefix}encoder.layer.{n}.attention.self.query").items()}
    found = read_peft(write(tmp_path / "mood", {}, theirs), BASE, facts())
    assert (found.name, found.sites) == ("mood", ("layer.0/attn.query", "layer.1/attn.query"))
    assert found.method is not None
    assert (found.method["r"], found.method["alpha"], found.method["attn_matrices"]) == (2, 4.0, ["q"])
    assert {fate.source for fate in found.fates} == theirs.keys()
    key = f"base_model.model.{prefix}encoder.layer.1.attention.self.query."
    expected = 2 * theirs[f"{key}lora_B.weight"] @ theirs[f"{key}lora_A.weight"]
    torch.testing.assert_close(matrix(found.tensors, "layer.1/attn.query", found.method), expected)
    assert to_package(found).manifest.semantics == "graftwork-1"


def test_ranks_and_alphas_of_their_own_are_kept_exactly(tmp_path: Path) -> None:
    theirs = pair(QUERY.format(0), 2) | pair(QUERY.format(1), 3) | pair("bert.encoder.layer.1.output.dense", 1)
    config = {"rank_pattern": {"output.dense": 1}, "alpha_pattern": {"layer.1.output.dense": 7}, "use_rslora": True}
    found = read_peft(write(tmp_path / "a", config, theirs), BASE, facts())
    wanted = {
        "layer.0/attn.query": (QUERY.format(0), 4 / 2**0.5),
        "layer.1/attn.query": (QUERY.format(1), 4 / 3**0.5),
        "layer.1/ffn.down": ("bert.encoder.layer.1.output.dense", 7.0),
    }
    for site, (path, scale) in wanted.items():
        key = f"base_model.model.{path}."
        expected = scale * theirs[f"{key}lora_B.weight"] @ theirs[f"{key}lora_A.weight"]
        torch.testing.assert_close(matrix(found.tensors, site, found.method), expected)
    # layer 0 has a query and no down: what is missing there is filled with what changes nothing
    assert not torch.any(found.tensors["adapter/layer.0/ffn.down/b"])
    assert any("layer.0/ffn.down is not adapted" in note for note in found.notes)


def test_layers_without_any_module_are_left_out(tmp_path: Path) -> None:
    found = read_peft(write(tmp_path / "a", {}, pair(QUERY.format(1))), BASE, facts(3))
    assert found.method is not None
    assert found.method["leave_out"] == [0, 2]
    assert found.sites == ("layer.1/attn.query",)


def test_one_linear_for_query_key_and_value(tmp_path: Path) -> None:
    rows = {"attn.query": slice(0, 8), "attn.key": slice(8, 16), "attn.value": torch.arange(16, 24)}
    merged = tuple(Place(f"layer.0/{kind}", 0, WIDTH, WIDTH, own) for kind, own in rows.items())
    theirs = pair("transformer.h.0.attn.c_attn", outputs=24)
    base = Asserted("gpt2", WIDTH)
    found = read_peft(write(tmp_path / "a", {}, theirs), base, Facts(places={"h.0.attn.c_attn": merged}))
    key = "base_model.model.transformer.h.0.attn.c_attn."
    whole = 2 * theirs[f"{key}lora_B.weight"] @ theirs[f"{key}lora_A.weight"]
    for kind, own in rows.items():
        torch.testing.assert_close(matrix(found.tensors, f"layer.0/{kind}", found.method), whole[own])


def test_a_path_of_transformers_4_is_found_on_a_base_that_has_been_renamed(tmp_path: Path) -> None:
    place = Place("layer.0/attn.query", 0, WIDTH, WIDTH)
    theirs = pair("vit.encoder.layer.0.attention.attention.query")
    today = Facts(places={"layers.0.attention.q_proj": (place,)})
    found = read_peft(write(tmp_path / "a", {}, theirs), Asserted("vit", WIDTH), today)
    assert found.sites == ("layer.0/attn.query",)


def test_dora_ia3_and_vera(tmp_path: Path) -> None:
    key = f"base_model.model.{QUERY.format(0)}."
    dora = pair(QUERY.format(0)) | {f"{key}lora_magnitude_vector": rand(WIDTH)}
    found = read_peft(write(tmp_path / "dora", {"use_dora": True}, dora), BASE, facts(1))
    assert torch.equal(found.tensors["adapter/layer.0/attn.query/magnitude"], rand(WIDTH))
    assert found.method is not None
    assert found.method["kind"] == "dora"
    ia3 = read_peft(write(tmp_path / "ia3", {}, {f"{key}ia3_l": rand(WIDTH, 1)}, "IA3"), BASE, facts(1))
    assert torch.equal(ia3.tensors["adapter/layer.0/attn.query/scale"], rand(WIDTH, 1)[:, 0])
    frozen = {"base_model.vera_A": rand(3, 2 * WIDTH)[:, :WIDTH].contiguous(), "base_model.vera_B": rand(WIDTH, 3)}
    own = {f"{key}vera_lambda_d": rand(3), f"{key}vera_lambda_b": rand(WIDTH)}
    vera = read_peft(write(tmp_path / "vera", {"r": 3}, frozen | own, "VERA"), BASE, facts(1))
    expected = own[f"{key}vera_lambda_b"][:, None] * frozen["base_model.vera_B"]
    expected = expected @ (own[f"{key}vera_lambda_d"][:, None] * frozen["base_model.vera_A"])
    torch.testing.assert_close(matrix(vera.tensors, "layer.0/attn.query", vera.method), expected)
    assert {fate.source for fate in vera.fates} == frozen.keys() | own.keys()
    with pytest.raises(PackageError, match="save_projection"):
        read_peft(write(tmp_path / "bare", {"r": 3}, own, "VERA"), BASE, facts(1))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"bias": "all"}, "bias 'all'"),
        ({"lora_bias": True}, "lora_bias"),
        ({"init_lora_weights": "pissa"}, "changed the base's own weights"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"an_option_of_next_year": 3}, "an_option_of_next_year"),
        ({"alpha_pattern": {"(a+)+$": 3}}, "is an expression"),
        ({"lora_alpha": "much"}, "alpha 'much'"),
        ({"peft_type": "LOHA"}, "LOHA"),
        ({"use_dora": True}, "expected .*magnitude"),
    ],
)
def test_an_option_that_is_not_read_is_refused(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    with pytest.raises(PackageError, match=message):
        read_peft(write(tmp_path / "a", config, pair(QUERY.format(0))), BASE, facts())


def test_a_feed_forward_ia3_scales_what_the_last_linear_takes(tmp_path: Path) -> None:
    theirs = {"base_model.model.bert.encoder.layer.0.output.dense.ia3_l": rand(1, WIDTH)}
    theirs |= {f"base_model.model.{QUERY.format(n)}.ia3_l": rand(WIDTH, 1) for n in range(2)}
    config = {"feedforward_modules": ["output.dense"]}
    found = read_peft(write(tmp_path / "a", config, theirs, "IA3"), BASE, facts(3))
    assert found.method is not None
    assert (found.method["inner_ffn"], found.method["output_lora"], found.method["leave_out"]) == (True, False, [2])
    assert torch.equal(found.tensors["adapter/layer.0/ffn.down.input/scale"], rand(1, WIDTH)[0])
    assert torch.equal(found.tensors["adapter/layer.1/ffn.down.input/scale"], torch.ones(WIDTH))
    assert found.tensors.keys() >= {f"adapter/layer.{n}/attn.query/scale" for n in range(2)}
    theirs = {f"base_model.model.{QUERY.format(0)}.ia3_l": rand(1, WIDTH)}
    with pytest.raises(PackageError, match=r"inputs of attn\.query"):
        read_peft(write(tmp_path / "b", {}, theirs, "IA3"), BASE, facts())


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (pair("bert.encoder.layer.7.attention.self.query"), "no linears of the base"),
        (pair(QUERY.format(0)) | {"base_model.model.classifier.weight": rand(2, 8)}, "have no place.*classifier"),
        (pair(QUERY.format(0), outputs=5), "made for another base"),
        ({"base_model.model.x.lora_A.weight": rand(2, 8)}, "expected"),
        ({"other": rand(2)}, "holds no module"),
    ],
)
def test_tensors_that_do_not_fit(tmp_path: Path, tensors: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(PackageError, match=message):
        read_peft(write(tmp_path / "a", {}, tensors), BASE, facts())


def test_the_base_is_needed_and_its_own_embedding_is_no_part_of_an_adapter(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", {}, pair(QUERY.format(0)))
    with pytest.raises(PackageError, match="give the base"):
        read_peft(folder, BASE, Facts())
    with pytest.raises(NotFound):
        read_peft(tmp_path, BASE, facts())
    embedding = {"base_model.model.bert.embeddings.word_embeddings.weight": rand(11, WIDTH)}
    folder = write(tmp_path / "b", {}, pair(QUERY.format(0)) | embedding)
    known = Facts(places=facts().places, embedding=rand(11, WIDTH))
    assert any("unchanged" in fate.how for fate in read_peft(folder, BASE, known).fates)
    other = Facts(places=facts().places, embedding=rand(11, WIDTH) + 1)
    with pytest.raises(PackageError, match="have no place"):
        read_peft(folder, BASE, other)


LLAMA = {"gate_proj": "ffn.gate", "up_proj": "ffn.up", "down_proj": "ffn.down"}


def llama(layers: int = 2) -> Facts:
    return Facts(
        places={
            f"layers.{n}.mlp.{path}": (Place(f"layer.{n}/{kind}", n, WIDTH, WIDTH),)
            for n in range(layers)
            for path, kind in LLAMA.items()
        }
    )


@pytest.mark.parametrize(
    ("parallel", "modules", "sites"),
    [
        (False, ["gate_proj", "up_proj"], ["ffn.gate.input", "ffn.up.input"]),
        (False, ["down_proj"], ["ffn.down"]),
        (True, ["up_proj", "down_proj"], ["ffn.down", "ffn.up"]),
    ],
)
def test_llm_adapters(tmp_path: Path, parallel: bool, modules: list[str], sites: list[str]) -> None:
    theirs = {
        f"base_model.model.model.layers.{n}.mlp.{module}.adapter_{side}.weight": rand(*shape)
        for n in range(2)
        for module in modules
        for side, shape in (("down", (3, WIDTH)), ("up", (WIDTH, 3)))
    }
    folder = tmp_path / "a"
    folder.mkdir()
    config = {"peft_type": "BOTTLENECK", "bottleneck_size": 3, "non_linearity": "tanh", "adapter_dropout": 0.0}
    config |= {"use_parallel_adapter": parallel, "scaling": 1, "use_adapterp": False, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    torch.save(theirs, folder / "adapter_model.bin")
    found = read_llm_adapters(folder, Asserted("llama", WIDTH), llama())
    assert found.method is not None
    assert (found.method["linears"], found.method["is_parallel"]) == (sites, parallel)
    assert found.method["bias"] is False
    assert found.method["scaling"] == 1.0
    assert {f"layer.{n}/{site}" for n in range(2) for site in sites} == set(found.sites)
    assert {fate.source for fate in found.fates} == theirs.keys()
    torch.save(theirs | {"base_model.model.model.norm.weight": rand(3)}, folder / "adapter_model.bin")
    with pytest.raises(PackageError, match="have no place"):
        read_llm_adapters(folder, Asserted("llama", WIDTH), llama())
    torch.save(dict(list(theirs.items())[:2] + list(theirs.items())[-2:]), folder / "adapter_model.bin")
    if len(modules) > 1:
        with pytest.raises(PackageError, match="has no adapter"):
            read_llm_adapters(folder, Asserted("llama", WIDTH), llama())
