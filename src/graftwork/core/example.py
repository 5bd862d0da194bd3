"""A small random input for a model, made from what its configuration says it takes; the model itself is not run.

Two rows, a few tokens. For a model that takes something else, the caller hands the input over.
"""

from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from graftwork.errors import BackboneError

ROWS, TOKENS, DECODED = 2, 8, 5


def example_of(model: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    """Keyword arguments for one forward of a model. Raises BackboneError for a model whose input is not known here."""
    generator = torch.Generator().manual_seed(seed)
    config = getattr(model, "config", None)
    names = list(signature(model.forward).parameters)
    main = str(getattr(model, "main_input_name", names[0] if names else ""))
    if config is None:
        return _plain(model, main, generator)
    makers = {"input_ids": _ids, "pixel_values": _pixels, "input_values": _values, "input_features": _features}
    wanted = [main, *(other for other in makers if other in names and _needs(config, other) and other != main)]
    found: dict[str, Tensor] = {}
    for name in wanted:
        if name not in makers:
            raise _unknown(model, name)
        found[name] = makers[name](config, generator)
    if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in names:
        found["decoder_input_ids"] = _ids(config, generator)[:, :DECODED]
    if "pixel_values_videos" in names and main == "pixel_values_videos":
        raise _unknown(model, main)
    if getattr(config, "is_decoder", False) and getattr(config, "add_cross_attention", False):
        width = int(getattr(config, "cross_attention_hidden_size", None) or config.hidden_size)
        found["encoder_hidden_states"] = torch.randn(ROWS, DECODED, width, generator=generator)
    place = next(iter(model.parameters()))
    return {
        name: value.to(place.device, place.dtype if value.is_floating_point() else value.dtype)
        for name, value in found.items()
    }


def _needs(config: Any, name: str) -> bool:
    towers = {"input_ids": "text_config", "pixel_values": "vision_config"}
    return name in towers and all(hasattr(config, tower) for tower in towers.values())


def _unknown(model: nn.Module, name: str) -> BackboneError:
    return BackboneError(
        f"a {type(model).__name__} takes {name!r}, and no probe for that can be made up: give one forward's arguments "
        "as probe={...}, two rows and a few tokens"
    )


def _plain(model: nn.Module, name: str, generator: torch.Generator) -> dict[str, Tensor]:
    """For a plain module: ids where it has an embedding, else numbers as wide as its first norm or linear."""
    place = next(iter(model.parameters()), None)
    if place is None:
        raise _unknown(model, name)
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            high = min(module.num_embeddings, 100)
            return {name: torch.randint(min(3, high - 1), high, (ROWS, TOKENS), generator=generator).to(place.device)}
    width = next((p.shape[-1] for p in model.parameters() if p.dim() == 2), None)
    if width is None:
        raise _unknown(model, name)
    return {name: torch.randn(ROWS, TOKENS, width, generator=generator).to(place)}


def _ids(config: Any, generator: torch.Generator) -> Tensor:
    config = config.get_text_config()
    special = {getattr(config, f"{name}_token_id", None) for name in ("pad", "eos", "bos")}
    allowed = [number for number in range(3, min(int(config.vocab_size), 200)) if number not in special]
    picked = torch.randint(0, len(allowed), (ROWS, TOKENS), generator=generator)
    return torch.tensor(allowed)[picked]


def _pixels(config: Any, generator: torch.Generator) -> Tensor:
    config = getattr(config, "vision_config", config)
    size = config.image_size
    height, width = size if isinstance(size, list | tuple) else (size, size)
    frames = (int(config.num_frames),) if hasattr(config, "num_frames") else ()
    return torch.randn(ROWS, *frames, int(config.num_channels), int(height), int(width), generator=generator)


def _values(config: Any, generator: torch.Generator) -> Tensor:
    if hasattr(config, "num_mel_bins"):
        return torch.randn(ROWS, int(config.max_length), int(config.num_mel_bins), generator=generator)
    return torch.randn(ROWS, 4000, generator=generator)


def _features(config: Any, generator: torch.Generator) -> Tensor:
    length = 2 * int(config.max_source_positions)
    return torch.randn(ROWS, int(config.num_mel_bins), length, generator=generator)
