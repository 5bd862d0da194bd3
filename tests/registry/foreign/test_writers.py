"""What is written for AdapterHub and PEFT reads back as what it was, and what they lack is refused before a file is."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from graftwork.errors import Conflict, PackageError
from graftwork.manifest import BaseRef, FusionSpec, HeadSpec, Manifest, Member
from graftwork.registry.foreign.adapterhub import read_adapterhub, read_fusion
from graftwork.registry.foreign.adapterhub_write import write_adapterhub
from graftwork.registry.foreign.files import read_tensors
from graftwork.registry.foreign.imported import Asserted, Facts, Place
from graftwork.registry.foreign.peft import read_peft
from graftwork.registry.foreign.peft_write import write_peft
from graftwork.registry.foreign.reft import orthogonal
from graftwork.registry.package import Package
from tests.registry.foreign.hub_files import WIDTH, rand

SEQ_BN = {"kind": "bottleneck", "original_ln_before": True, "reduction_factor": 4}
LINEAR = {
    "selfattn_lora": True,
    "crossattn_lora": True,
    "intermediate_lora": False,
    "gate_lora": False,
    "output_lora": False,
    "attn_matrices": ["q"],
    "use_gating": False,
    "leave_out": [],
    "stacks": [],
}
LORA = {"kind": "lora", **LINEAR, "r": 2, "alpha": 6.0, "dropout": 0.0, "use_rslora": False}
IA3 = {"kind": "ia3", **LINEAR, "alpha": 1, "inner_ffn": False}
REFT = {
    "kind": "reft",
    "layers": "all",
    "prefix_positions": 3,
    "suffix_positions": 0,
    "r": 2,
    "orthogonality": True,
    "tied_weights": False,
    "subtract_projection": True,
    "dropout": 0.0,
    "non_linearity": None,
    "leave_out": [],
}


def package(method: Any, tensors: dict[str, torch.Tensor], model: str = "bert", **more: Any) -> Package:
    base = BaseRef(fingerprint="ab" * 32, model_type=model, name="tiny", hidden_size=WIDTH)
    sites = tuple(sorted({key.split("/", 1)[1].rpartition("/")[0] for key in tensors if not key.startswith("head/")}))
    fields = {"role": "task", "method": method, "name": "mood", "base": base, "sites": sites} | more
    return Package(Manifest(**fields), tensors)


def bottleneck(site: str = "layer.0/ffn") -> dict[str, torch.Tensor]:
    shapes = {"down.weight": (2, WIDTH), "down.bias": (2,), "up.weight": (WIDTH, 2), "up.bias": (WIDTH,)}
    return {f"adapter/{site}/{name}": rand(*shape) for name, shape in shapes.items()}


def pair(site: str, rank: int = 2) -> dict[str, torch.Tensor]:
    return {f"adapter/{site}/a": rand(rank, WIDTH), f"adapter/{site}/b": rand(WIDTH, rank) + 1}


def test_a_bottleneck_and_its_head(tmp_path: Path) -> None:
    head = HeadSpec(kind="classification", labels=("no", "yes"), num_outputs=2, layers=2, dropout=0.1)
    heads = {
        f"head/layers.{n}.{p}": rand(*s) for n, o in ((1, 8), (4, 2)) for p, s in (("weight", (o, 8)), ("bias", (o,)))
    }
    norms = {f"adapter/layer.0/ffn/norm_before.{p}": rand(WIDTH) for p in ("weight", "bias")}
    made = package(SEQ_BN | {"ln_before": True}, bottleneck() | norms | heads, head=head)
    assert len(write_adapterhub(made, tmp_path / "hub")) == 4
    state = read_tensors(tmp_path / "hub", "pytorch_adapter.bin")
    at = "encoder.layer.0.output.adapters.mood.adapter_"
    assert {f"{at}down.1.weight", f"{at}down.0.weight", f"{at}norm_before.weight"} <= state.keys()
    (found,) = read_adapterhub(tmp_path / "hub")
    assert found.tensors.keys() == made.tensors.keys()
    assert all(torch.equal(found.tensors[key], made.tensors[key]) for key in made.tensors)
    assert found.head == {**head.model_dump(), "labels": ["no", "yes"], "options": {}}
    written = json.loads((tmp_path / "hub" / "head_config.json").read_text())
    assert written["model_class"] == "BertAdapterModel"
    with pytest.raises(Conflict, match="already"):
        write_adapterhub(made, tmp_path / "hub")


def test_a_fusion(tmp_path: Path) -> None:
    fusion = FusionSpec(
        composition="Fuse(a, b)",
        members=(Member(name="a", digest="1" * 64), Member(name="b", digest="2" * 64)),
        config={"key": True, "query": True, "value": False, "dropout_prob": 0.0},
    )
    tensors = {
        f"fusion/layer.0/ffn/{m}.{p}": rand(*s)
        for m in ("query", "key")
        for p, s in (("weight", (8, 8)), ("bias", (8,)))
    }
    write_adapterhub(package(None, tensors, role="fusion", fusion=fusion, name="a,b"), tmp_path / "f")
    found = read_fusion(tmp_path / "f")
    assert (found.members, found.fusion and found.fusion["value"]) == (("a", "b"), False)
    assert all(torch.equal(found.tensors[key], tensors[key]) for key in tensors)
    pruned = fusion.model_copy(update={"kept": {"layer.0/ffn": (1,)}})
    with pytest.raises(PackageError, match="this one is pruned; write the whole one"):
        write_adapterhub(package(None, tensors, role="fusion", fusion=pruned, name="a,b"), tmp_path / "pruned")


def test_merged_projections_are_put_together_again(tmp_path: Path) -> None:
    tensors = pair("layer.0/attn.query") | {key: value + 1 for key, value in pair("layer.0/attn.value").items()}
    made = package(LORA | {"attn_matrices": ["q", "v"]}, tensors, "gpt2")
    write_adapterhub(made, tmp_path / "hub")
    state = read_tensors(tmp_path / "hub", "pytorch_adapter.bin")
    assert state["h.0.attn.c_attn.loras.mood.lora_A"].shape == (4, WIDTH)
    (found,) = read_adapterhub(tmp_path / "hub")
    assert all(torch.equal(found.tensors[key], tensors[key]) for key in tensors)


def test_an_orthonormal_projection_is_what_torch_parametrises(tmp_path: Path) -> None:
    matrix = (torch.linalg.qr(rand(WIDTH, 2))[0] * torch.tensor([1.0, -1.0])).T.contiguous()
    shapes = {"source.weight": rand(2, WIDTH), "source.bias": rand(2), "projection": matrix}
    made = package(REFT, {f"adapter/layer.0/ffn/prefix.{key}": value for key, value in shapes.items()})
    write_adapterhub(made, tmp_path / "hub")
    state = read_tensors(tmp_path / "hub", "pytorch_adapter.bin")
    at = "encoder.layer.0.reft_layer.refts.mood.units.0.projection.parametrizations.weight."
    torch.testing.assert_close(orthogonal(state[f"{at}original"], state[f"{at}0.base"]), matrix)
    linear = nn.utils.parametrizations.orthogonal(nn.Linear(WIDTH, 2, bias=False))
    linear.load_state_dict(
        {key: state[at.removesuffix("parametrizations.weight.") + key] for key in linear.state_dict()}
    )
    torch.testing.assert_close(linear.weight.detach(), matrix)


@pytest.mark.parametrize(
    ("method", "model", "why"),
    [
        (SEQ_BN | {"linears": ["ffn.down"]}, "bert", "linears"),
        (SEQ_BN | {"bias": False}, "bert", "bias"),
        (SEQ_BN | {"train_norms": True}, "bert", "train_norms"),
        (SEQ_BN | {"stacks": ["encoder"]}, "t5", "whole stacks"),
        (SEQ_BN | {"inv_adapter": "glow"}, "bert", "GLOW"),
        (SEQ_BN | {"bottleneck_size": 3}, "bert", "no whole part"),
        (SEQ_BN | {"mh_adapter": True}, "albert", "swaps"),
        (SEQ_BN, "modernbert", "normed input"),
        (SEQ_BN, "gemma2", "last layer's norm"),
        (LORA | {"attn_matrices": ["o"]}, "bert", "output of an attention"),
        (LORA | {"gate_lora": True}, "llama", "gate of a feed-forward"),
        (LORA | {"r": {"default": 2}}, "bert", "one rank"),
        (LORA | {"kind": "dora", "variant": "paper"}, "bert", "another function"),
        (LORA | {"kind": "vera"}, "bert", "vera"),
        (IA3 | {"inner_ffn": True}, "bert", "what the last one takes"),
        (REFT | {"subtract_projection": False}, "bert", "DiReFT"),
        (REFT | {"leave_out": [0]}, "bert", "leaves none out"),
        (SEQ_BN, "martian", "martian"),
    ],
)
def test_what_adapterhub_lacks_is_refused(tmp_path: Path, method: Any, model: str, why: str) -> None:
    with pytest.raises(PackageError, match=why):
        write_adapterhub(package(method, bottleneck(), model), tmp_path / "hub")
    assert not (tmp_path / "hub").exists()


@pytest.mark.parametrize(
    ("head", "model", "why"),
    [
        (HeadSpec(kind="sentence_embedding", num_outputs=8), "bert", "no head of kind"),
        (HeadSpec(kind="classification", num_outputs=2, pooling="mean"), "bert", "never read 'mean'"),
        (HeadSpec(kind="tagging", num_outputs=2, pooling="none", options={"scale": 2.0}), "bert", "do not scale"),
        (HeadSpec(kind="tagging", num_outputs=2, pooling="none"), "qwen3", "no model class with heads"),
        (HeadSpec(kind="masked_lm", num_outputs=2, pooling="none", options={"tied": True}), "bert", "give the base"),
    ],
)
def test_a_head_that_adapterhub_lacks_is_refused(tmp_path: Path, head: HeadSpec, model: str, why: str) -> None:
    made = package(SEQ_BN, bottleneck() | {"head/layers.1.weight": rand(2, 8)}, model, head=head)
    with pytest.raises(PackageError, match=why):
        write_adapterhub(made, tmp_path / "hub")


def facts() -> Facts:
    places = {"attention.self.query": "attn.query", "attention.self.value": "attn.value", "output.dense": "ffn.down"}
    return Facts(
        places={
            f"encoder.layer.{n}.{path}": (Place(f"layer.{n}/{kind}", n, WIDTH, WIDTH),)
            for n in range(2)
            for path, kind in places.items()
        }
    )


@pytest.mark.parametrize("rslora", [False, True])
def test_a_lora_for_peft(tmp_path: Path, rslora: bool) -> None:
    tensors = pair("layer.0/attn.query") | pair("layer.1/attn.query")
    made = package(LORA | {"use_rslora": rslora}, tensors)
    write_peft(made, tmp_path / "mood", facts(), prefix="bert")
    state = load_file(tmp_path / "mood" / "adapter_model.safetensors")
    key = "base_model.model.bert.encoder.layer.1.attention.self.query.lora_B.weight"
    assert torch.equal(state[key], tensors["adapter/layer.1/attn.query/b"])
    found = read_peft(tmp_path / "mood", Asserted("bert", WIDTH), facts())
    assert found.method is not None
    assert found.method["alpha"] / found.method["r"] == pytest.approx(6 / (2**0.5 if rslora else 2))
    assert all(torch.equal(found.tensors[key], tensors[key]) for key in tensors)


def test_ia3_for_peft_scales_outputs_by_a_column_and_inputs_by_a_row(tmp_path: Path) -> None:
    tensors = {"adapter/layer.0/attn.query/scale": rand(WIDTH), "adapter/layer.0/ffn.down.input/scale": rand(WIDTH) + 1}
    made = package(IA3 | {"inner_ffn": True, "leave_out": [1]}, tensors)
    write_peft(made, tmp_path / "mood", facts())
    found = read_peft(tmp_path / "mood", Asserted("bert", WIDTH), facts())
    assert found.tensors.keys() == tensors.keys()
    assert all(torch.equal(found.tensors[key], tensors[key]) for key in tensors)
    assert found.method is not None
    assert (found.method["inner_ffn"], found.method["leave_out"]) == (True, [1])


def test_parts_of_one_linear_become_one_pair_for_peft(tmp_path: Path) -> None:
    rows = {"attn.query": slice(0, 8), "attn.key": slice(8, 16), "attn.value": slice(16, 24)}
    merged = tuple(Place(f"layer.0/{kind}", 0, WIDTH, WIDTH, own) for kind, own in rows.items())
    tensors = pair("layer.0/attn.query") | {key: value + 1 for key, value in pair("layer.0/attn.value").items()}
    made = package(LORA | {"attn_matrices": ["q", "v"]}, tensors, "gpt2")
    write_peft(made, tmp_path / "mood", Facts(places={"h.0.attn.c_attn": merged}))
    state = load_file(tmp_path / "mood" / "adapter_model.safetensors")
    config = json.loads((tmp_path / "mood" / "adapter_config.json").read_text())
    key = "base_model.model.h.0.attn.c_attn.lora_"
    whole = config["lora_alpha"] / config["r"] * state[f"{key}B.weight"] @ state[f"{key}A.weight"]
    for kind, own in rows.items():
        at = f"adapter/layer.0/{kind}/"
        expected = 3 * tensors[f"{at}b"] @ tensors[f"{at}a"] if kind != "attn.key" else torch.zeros(WIDTH, WIDTH)
        torch.testing.assert_close(whole[own], expected)


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (package(SEQ_BN, bottleneck()), "no method like 'bottleneck'"),
        (package(LORA | {"use_gating": True}, pair("layer.0/attn.query")), "no gates"),
        (package(LORA | {"kind": "dora", "variant": "adapters"}, pair("layer.0/attn.query")), "AdapterHub's function"),
        (package(LORA, pair("layer.9/attn.query")), r"no linear for \['layer\.9/attn\.query'\]"),
        (
            package(
                LORA,
                pair("layer.0/attn.query") | {"head/layers.1.weight": rand(2, 8)},
                head=HeadSpec(kind="classification", num_outputs=2),
            ),
            "without its head",
        ),
    ],
)
def test_what_peft_lacks_is_refused(tmp_path: Path, made: Package, why: str) -> None:
    with pytest.raises(PackageError, match=why):
        write_peft(made, tmp_path / "mood", facts())
    assert not (tmp_path / "mood").exists()
