"""The identity of a frozen trunk: which weights, computing what.

    fingerprint = sha256( configuration fields that change computation ; the set of tensor entries )
    entry       = (the layer numbers in the tensor's name, shape, sha256 of its bytes as stored)

Names themselves stay out: transformers renames modules between versions, but layer numbers, shapes and bytes stay. The
pooler and task heads stay out too, so the class on top does not move the fingerprint. Where the model came from files,
the files are hashed (dtype, quantisation and device of the loaded copy do not matter), once the loaded weights are seen
to be those of the files; results are kept by path, size and time of change. A model without files is hashed in memory.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import safe_open
from torch import Tensor, nn

from graftwork.errors import BackboneError

# what changes the function that the trunk computes; everything else in a configuration is bookkeeping
COMPUTING_FIELDS = (
    *("model_type", "hidden_size", "num_hidden_layers", "num_layers", "num_decoder_layers", "intermediate_size"),
    *("num_attention_heads", "num_key_value_heads", "head_dim", "encoder_layers", "decoder_layers"),
    *("encoder_attention_heads", "decoder_attention_heads", "hidden_act", "hidden_activation", "activation_function"),
    *("activation", "feed_forward_proj", "layer_norm_eps", "layer_norm_epsilon", "rms_norm_eps", "norm_eps"),
    *("rope_parameters", "sliding_window", "layer_types", "max_position_embeddings", "position_embedding_type"),
    *("relative_attention_num_buckets", "relative_attention_max_distance", "scale_embedding", "is_decoder"),
    *("patch_size", "image_size"),
    *("local_attention", "global_attn_every_n_layers", "scale_attn_weights", "scale_attn_by_inverse_layer_idx"),
)
_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_NOT_TRUNK = re.compile(r"(^|\.)(pooler|lm_head|cls|classifier|score|qa_outputs)\.|inv_freq|position_ids|masked_bias")

_seen: dict[tuple[tuple[str, int, int], ...], str] = {}  # files (path, size, mtime) -> digest of their tensors


def fingerprint(model: Any, trunk: nn.Module) -> str:
    """sha256 hex of the trunk under `model` (a transformers model).

    Raises BackboneError for weights that are neither in files nor in memory.
    """
    files = weight_files(str(model.config.name_or_path or ""), getattr(model.config, "_commit_hash", None))
    if files and _holds(files, model, trunk):
        tensors = _of_files(files, model.base_model_prefix)
    else:
        tensors = _of_entries(_entry(name, tensor) for name, tensor in trunk.named_parameters() if is_trunk(name))
    fields = {key: getattr(model.config, key, None) for key in COMPUTING_FIELDS}
    if hasattr(model, "structure"):  # a plain module, whose configuration says nothing of what it computes
        fields["structure"] = model.structure
    text = json.dumps([fields, tensors], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def is_trunk(name: str) -> bool:
    """Whether a tensor belongs to the trunk: not a pooler, a head, or a buffer that old checkpoints stored."""
    return not _NOT_TRUNK.search(name)


def weight_files(name: str, revision: str | None = None) -> list[Path]:
    """The safetensors files of a model folder or of a cached hub snapshot; empty when none are on this machine."""
    if not name:
        return []
    whole, index = (_local(name, file, revision) for file in (_WHOLE, _INDEX))
    if whole is not None:
        return [whole]
    if index is None:
        return []
    shards = set(json.loads(index.read_text("utf8"))["weight_map"].values())
    return [index.parent / shard for shard in sorted(shards)]


def _local(name: str, file: str, revision: str | None) -> Path | None:
    if Path(name).is_dir():
        return Path(name, file) if Path(name, file).is_file() else None
    try:
        found = try_to_load_from_cache(name, file, revision=revision)
    except ValueError:  # not the form of a hub id: a folder that has moved since
        return None
    return Path(found) if isinstance(found, str) else None


def _trunk_name(name: str, prefix: str, prefixed: bool) -> str | None:
    """The name of a stored tensor inside the trunk, or None when it belongs to something on top."""
    if prefixed:
        if not name.startswith(prefix + "."):
            return None
        name = name[len(prefix) + 1 :]
    return name if is_trunk(name) else None


def _stored(files: Iterable[Path], prefix: str) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """Name inside the trunk and a reader, for every stored tensor of the trunk."""
    names: dict[str, Path] = {}
    for file in files:
        with safe_open(file, framework="pt") as opened:
            names |= dict.fromkeys(opened.keys(), file)
    prefixed = bool(prefix) and any(name.startswith(prefix + ".") for name in names)

    def reader(file: Path, name: str) -> Callable[[], Tensor]:
        def read() -> Tensor:
            with safe_open(file, framework="pt") as opened:
                return opened.get_tensor(name)  # type: ignore[no-any-return]

        return read

    for name, file in sorted(names.items()):
        inside = _trunk_name(name, prefix, prefixed)
        if inside is not None:
            yield inside, reader(file, name)


def _holds(files: list[Path], model: Any, trunk: nn.Module) -> bool:
    """Whether the loaded weights are those of the files.

    Tensors that cannot be compared (renamed on loading, packed by quantisation, offloaded, spread over processes) are
    trusted; one that can and differs means that the model was changed since.
    """
    parameters = dict(trunk.named_parameters())
    for name, read in _stored(files, model.base_model_prefix):
        parameter = parameters.get(name)
        if parameter is None or parameter.is_meta or not parameter.is_floating_point():
            continue
        if hasattr(parameter, "device_mesh"):  # a DTensor: this process has a part of it
            continue
        stored = read()
        if stored.shape == parameter.shape and not torch.equal(stored.to(parameter), parameter.detach()):
            return False
    return True


def _of_files(files: list[Path], prefix: str) -> str:
    key = tuple((str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files)
    if key not in _seen:
        stored = ((name, read()) for name, read in _stored(files, prefix))
        _seen[key] = _of_entries(_entry(name, tensor) for name, tensor in stored if tensor.is_floating_point())
    return _seen[key]


def _entry(name: str, tensor: Tensor) -> str:
    if tensor.is_meta:
        raise BackboneError(
            f"the base has no identity: its weight {name!r} is in no file that is known here, and not in memory. Load "
            "the model from a folder or id with safetensors weights"
        )
    numbers = ".".join(step for step in name.split(".") if step.isdecimal())  # layer numbers; not the 1 of "fc1"
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data  # a memoryview: no copy
    return f"{numbers}|{tuple(tensor.shape)}|{tensor.dtype}|{hashlib.sha256(data).hexdigest()}"


def _of_entries(entries: Iterable[str]) -> str:
    # a set, not a list: a tied tensor counts once, whether the file stores it once or twice
    return hashlib.sha256("\n".join(sorted(set(entries))).encode()).hexdigest()
