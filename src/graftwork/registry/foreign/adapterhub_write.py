"""Packages as folders that a colleague on AdapterHub loads: `model.load_adapter(folder)`.

    adapter_config.json, pytorch_adapter.bin        head_config.json, pytorch_model_head.bin        a fusion's two

Marked as written by adapters 1.3.0, whose rules they follow. What that library lacks, or would compute otherwise, is
refused with the reason; nothing is written then.
"""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from graftwork.errors import Conflict, PackageError
from graftwork.manifest import HeadSpec, Manifest
from graftwork.registry.durable import new_folder
from graftwork.registry.foreign import adapterhub, heads
from graftwork.registry.foreign.hub_methods import Hub, write_method
from graftwork.registry.foreign.imported import UNKNOWN, Facts
from graftwork.registry.foreign.layouts import layout_of
from graftwork.registry.package import Package

VERSION = "adapters.1.3.0"
# model types whose classes of AdapterHub have flexible heads -> what the name of the class begins with
CLASSES = {
    "albert": "Albert", "bart": "Bart", "beit": "Beit", "bert": "Bert", "bert-generation": "BertGeneration",
    "clip": "CLIP", "deberta": "Deberta", "deberta-v2": "DebertaV2", "distilbert": "DistilBert", "electra": "Electra",
    "gpt2": "GPT2", "gptj": "GPTJ", "llama": "Llama", "mbart": "MBart", "mistral": "Mistral", "mt5": "MT5",
    "plbart": "PLBart", "roberta": "Roberta", "t5": "T5", "vit": "ViT", "whisper": "Whisper",
    "xlm-roberta": "XLMRoberta", "xmod": "Xmod",
}  # fmt: skip
_ROW = ("num_labels", "layers", "activation_function", "dropout_prob", "use_pooler", "bias")
_TOKEN = ("num_labels", "layers", "activation_function", "dropout_prob")
_WORDS = ("vocab_size", "layers", "activation_function", "layer_norm", "bias", "shift_labels")
# kind of head -> the fields that AdapterHub's class takes, besides head_type and label2id; another one makes it fail
_FIELDS: dict[str, tuple[str, ...]] = {
    "classification": _ROW,
    "multilabel_classification": _ROW,
    "image_classification": (*_ROW, "multilabel"),
    "multiple_choice": ("num_choices", "layers", "activation_function", "dropout_prob", "use_pooler"),
    "tagging": _TOKEN,
    "question_answering": _TOKEN,
    "dependency_parsing": ("num_labels",),
    "masked_lm": (*_WORDS, "embedding_size"),
    "causal_lm": (*_WORDS, "embedding_size", "dropout_prob"),
    "seq2seq_lm": _WORDS,
}


def write_adapterhub(package: Package, folder: Path | str, facts: Facts = UNKNOWN) -> list[str]:
    """Write a package as a new folder in AdapterHub's layout and return the names of its files.

    facts: of the base, which decide between paths and hold an embedding that a tied head shares. Raises PackageError
    with what AdapterHub lacks, Conflict for a folder that is not empty.
    """
    folder, manifest = Path(folder), package.manifest
    name = manifest.name.replace("/", "-")
    if "." in name:
        raise PackageError(f"{name!r} cannot be written for AdapterHub: its names have no dots; rename the package")
    layout = layout_of(manifest.base.model_type, f"package {name!r}")
    hub = Hub(name, layout, facts, manifest.base.hidden_size)
    files: dict[str, bytes] = {}
    if manifest.fusion is not None:
        _write_fusion(hub, package, files)
    elif manifest.method is not None:
        _refuse_other_readings(hub, manifest)
        config = write_method(hub, manifest.method, _part(package, "adapter"))
        files[adapterhub.ADAPTER_CONFIG] = _json({**_meta(manifest, name), "config": config})
        files[adapterhub.ADAPTER_PICKLED] = _pickle(hub.state)
    if manifest.head is not None:
        _write_head(hub, manifest, manifest.head, _part(package, "head"), files)
    if not new_folder(folder, files):
        raise Conflict(f"{folder}: is there already; choose another folder")
    return list(files)


def _refuse_other_readings(hub: Hub, manifest: Manifest) -> None:
    """What AdapterHub computes otherwise on some models, unless the package came from there."""
    if manifest.semantics == adapterhub.SEMANTICS:
        return
    model, members = manifest.base.model_type, (manifest.method or {}).get("members")
    methods = [manifest.method, *(members if isinstance(members, list) else [])]
    for method in (one for one in methods if isinstance(one, Mapping)):
        if model == "albert" and method.get("mh_adapter"):
            raise hub.refuse("on ALBERT it swaps what an adapter after the attention reads and what that is added to")
        if model == "modernbert" and method["kind"] == "bottleneck":
            raise hub.refuse("on ModernBERT it reads the normed input of a block in the place of its residual")
        if model in ("gemma2", "gemma3_text") and method.get("original_ln_before"):
            raise hub.refuse("on Gemma it takes the last layer's norm in every layer")
        if model in ("t5", "mt5") and method["kind"] == "prefix_tuning":
            raise hub.refuse("on T5 its prefixes shift the relative positions of all keys")


def _write_fusion(hub: Hub, package: Package, files: dict[str, bytes]) -> None:
    fusion = package.manifest.fusion
    assert fusion is not None
    if fusion.kept:
        raise hub.refuse(
            "its fusions attend to every member in every layer, and this one is pruned; write the whole one"
        )
    names = [member.name for member in fusion.members]
    hub.name = ",".join(names)
    for key, tensor in _part(package, "fusion").items():
        site, _, leaf = key.rpartition("/")
        hub.put(hub.place(site), "adapter_fusion_layer", leaf, tensor)
    config = {key: fusion.config.get(key, default) for key, default in adapterhub.FUSION_FIELDS.items()}
    config |= {"temperature": False, "dropout_prob": fusion.config.get("dropout_prob") or None}
    meta = {**_meta(package.manifest, hub.name), "config": config, "adapter_names": names}
    files[adapterhub.FUSION_CONFIG] = _json(meta)
    files[adapterhub.FUSION_PICKLED] = _pickle(hub.state)


def _write_head(
    hub: Hub, manifest: Manifest, spec: HeadSpec, tensors: Mapping[str, torch.Tensor], files: dict[str, bytes]
) -> None:
    model = manifest.base.model_type
    if model not in CLASSES:
        raise hub.refuse(f"it has no model class with heads for {model!r}; pack the adapter without its head")
    config = _head_config(hub, spec, model)
    state = {f"heads.{hub.name}.{key.removeprefix('layers.')}": value for key, value in tensors.items()}
    if spec.options.get("tied"):
        if hub.facts.embedding is None:
            raise hub.refuse("its head shares the base's embedding; give the base")
        last = 3 * (spec.layers - 1) if spec.options.get("layer_norm") else 2 * (spec.layers - 1)
        state[f"heads.{hub.name}.{last}.weight"] = hub.facts.embedding
    meta = {**_meta(manifest, hub.name), "config": config, "model_class": f"{CLASSES[model]}AdapterModel"}
    files[heads.CONFIG] = _json(meta)
    files[heads.PICKLED] = _pickle(state)


def _head_config(hub: Hub, spec: HeadSpec, model: str) -> dict[str, Any]:
    kind = "classification" if spec.kind == "regression" else spec.kind
    options = dict(spec.options)
    if kind not in _FIELDS:
        raise hub.refuse(f"it has no head of kind {spec.kind!r}")
    pooler = next((use for use in (False, True) if heads.pooling(kind, use, model) == spec.pooling), None)
    if pooler is None:
        raise hub.refuse(f"on {model} its {kind} heads never read {spec.pooling!r}")
    if options.get("scale", 1.0) != 1.0 and model not in ("t5", "mt5"):
        raise hub.refuse("its heads do not scale what they read")
    for option, plain in (("layer_norm", False), ("bias", True)):
        if options.get(option, plain) != plain and option not in _FIELDS[kind]:
            raise hub.refuse(f"its {kind} heads have no choice of {option}")
    if options.get("width", hub.width) != hub.width and "embedding_size" not in _FIELDS[kind]:
        raise hub.refuse(f"its {kind} heads project from the width of the model")
    labels = spec.labels or (() if kind.endswith("_lm") else [f"LABEL_{number}" for number in range(spec.num_outputs)])
    known = {
        **dict.fromkeys(("num_labels", "num_choices", "vocab_size"), spec.num_outputs),
        "layers": spec.layers,
        "activation_function": None if spec.activation == "none" else spec.activation,
        "dropout_prob": spec.dropout,
        "use_pooler": pooler,
        "bias": options.get("bias", True),
        "layer_norm": options.get("layer_norm", False),
        "shift_labels": options.get("shift", False),
        "embedding_size": options.get("width") or hub.width,
        "multilabel": options.get("multilabel", False),
    }
    label2id = {label: number for number, label in enumerate(labels)} or None
    return {"head_type": kind, "label2id": label2id, **{field: known[field] for field in _FIELDS[kind]}}


def _meta(manifest: Manifest, name: str) -> dict[str, Any]:
    model = manifest.base.model_type
    return {
        "hidden_size": manifest.base.hidden_size,
        "model_class": f"{CLASSES[model]}Model" if model in CLASSES else "",
        "model_name": manifest.base.name,
        "model_type": model,
        "name": name,
        "version": VERSION,
    }


def _part(package: Package, part: str) -> dict[str, torch.Tensor]:
    return {k.removeprefix(f"{part}/"): v for k, v in package.tensors.items() if k.startswith(f"{part}/")}


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()


def _pickle(state: Mapping[str, torch.Tensor]) -> bytes:
    data = io.BytesIO()
    torch.save(dict(state), data)
    return data.getvalue()
