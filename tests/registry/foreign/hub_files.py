"""Folders as AdapterHub writes them, made by hand: a configuration beside names and tensors."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

WIDTH, BOTTLENECK = 8, 2
SEQ_BN = {"mh_adapter": False, "output_adapter": True, "original_ln_before": True, "reduction_factor": 4}
BERT = "encoder.layer.{}.output.adapters.{}."


def rand(*shape: int) -> torch.Tensor:
    """Numbers that differ from file to file only by shape."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def bottleneck(prefix: str, down: str = "adapter_down.0") -> dict[str, torch.Tensor]:
    """The four tensors of a bottleneck, each another one."""
    return {
        f"{prefix}{down}.weight": rand(BOTTLENECK, WIDTH),
        f"{prefix}{down}.bias": rand(BOTTLENECK),
        f"{prefix}adapter_up.weight": rand(WIDTH, BOTTLENECK),
        f"{prefix}adapter_up.bias": rand(WIDTH) + 1,
    }


def bert_bottleneck(name: str = "a", layers: int = 2, prefix: str = "") -> dict[str, torch.Tensor]:
    """A seq_bn of a BERT."""
    return {
        key: value for layer in range(layers) for key, value in bottleneck(prefix + BERT.format(layer, name)).items()
    }


def meta(config: Mapping[str, Any] | None, name: str | None = "a", **more: Any) -> dict[str, Any]:
    """What stands beside the fields of a method."""
    plain = {
        "config": config,
        "hidden_size": WIDTH,
        "model_class": "BertModel",
        "model_name": "bert-tiny",
        "model_type": "bert",
        "name": name,
        "version": "adapters.1.3.0",
    }
    return {key: value for key, value in {**plain, **more}.items() if value != "absent"}


def write(
    folder: Path,
    written: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    *,
    kind: str = "adapter",
    safe: bool = False,
) -> Path:
    """One folder of kind adapter, head or fusion."""
    folder.mkdir(parents=True, exist_ok=True)
    config, pickled, safetensors = {
        "adapter": ("adapter_config.json", "pytorch_adapter.bin", "adapter.safetensors"),
        "head": ("head_config.json", "pytorch_model_head.bin", "model_head.safetensors"),
        "fusion": (
            "adapter_fusion_config.json",
            "pytorch_model_adapter_fusion.bin",
            "model_adapter_fusion.safetensors",
        ),
    }[kind]
    (folder / config).write_text(json.dumps(written))
    if safe:
        save_file(dict(tensors), folder / safetensors)
    else:
        torch.save(dict(tensors), folder / pickled)
    return folder
