"""The tensors of one call as a trunk and its heads take them: rows counted, questions unfolded, labels in one tensor.

A question with C texts comes as (B, C, T) and runs as B·C rows, side by side; what is said of a question (its labels,
composition, head) is said of each of its rows. Where an answer starts and ends may come in two tensors, and becomes
labels (B, 2). Knows no model.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from graftwork.core.heads_language import shifted_right
from graftwork.errors import AdapterError

# inputs whose first dimension is the batch
ROWS = ("input_ids", "inputs_embeds", "pixel_values", "input_features", "input_values", "decoder_input_ids")
SENSED = ("pixel_values", "input_features", "input_values")  # those of them whose tokens only the model counts
SPOKEN_OF = ROWS[:-1]  # what `generate` begins with
_PLAIN_DIMENSIONS = {"input_ids": 2, "inputs_embeds": 3}
SPAN = ("start_positions", "end_positions")


@dataclass(frozen=True)
class Shape:
    """How many rows run, and how many of them are one question's (None: every row is its own)."""

    rows: int
    choices: int | None

    def per_row(self, value: Any) -> Any:
        """A list with one entry a question as a list with one entry a row; anything else as it is."""
        if self.choices is None or not isinstance(value, list | tuple) or len(value) * self.choices != self.rows:
            return value
        return [entry for entry in value for _ in range(self.choices)]


def shape_of(given: Mapping[str, Tensor]) -> Shape:
    """The rows of a call. Raises AdapterError without any input."""
    lead = next((key for key in ROWS if key in given), None)
    if lead is None:
        raise AdapterError(f"forward needs inputs: one of {', '.join(ROWS)}")
    first = given[lead]
    if first.dim() != _PLAIN_DIMENSIONS.get(lead, first.dim()) + 1:
        return Shape(first.shape[0], None)
    return Shape(first.shape[0] * first.shape[1], first.shape[1])


def for_heads(given: Mapping[str, Tensor], shape: Shape) -> dict[str, Tensor]:
    """The same tensors with questions unfolded to rows and labels in one tensor, `labels`. Raises AdapterError."""
    ready = dict(given)
    places = [ready.pop(name) for name in SPAN if name in ready]
    if len(places) == 1 or (places and "labels" in ready):
        raise AdapterError(f"labels are {' and '.join(SPAN)} together, or labels alone")
    if places:
        ready["labels"] = torch.stack([place.flatten() for place in places], dim=-1)
    if shape.choices is None:
        return ready
    questions = shape.rows // shape.choices
    return {
        key: value.flatten(0, 1)
        if key != "labels" and value.dim() > 2 and value.shape[:2] == (questions, shape.choices)
        else value.repeat_interleave(shape.choices, dim=0)
        if value.shape[0] == questions
        else value
        for key, value in ready.items()
    }


def with_decoder_input(inputs: Mapping[str, Tensor], labels: Tensor, config: Any) -> dict[str, Tensor]:
    """The inputs of an encoder-decoder that learns to say `labels` (B, T): the decoder reads them one to the right.

    A decoder input that was given stays. Raises AdapterError for a configuration that names no first token.
    """
    if "decoder_input_ids" in inputs or not config.is_encoder_decoder:
        return dict(inputs)
    start = config.decoder_start_token_id
    if start is None:
        raise AdapterError("the base's configuration has no decoder_start_token_id; set it, or give decoder_input_ids")
    pad = config.pad_token_id if getattr(config, "pad_token_id", None) is not None else 0
    return {**inputs, "decoder_input_ids": shifted_right(labels, start, pad)}


def check_extra(extra: Mapping[str, Any], named: set[str]) -> None:
    """Raise AdapterError for further arguments that have a place of their own."""
    for key in extra:
        if key in named:
            raise AdapterError(f"extra holds {key!r}, which is an argument of its own")


def ends_of(inputs: Mapping[str, Tensor], config: Any) -> Tensor | None:
    """Where the input ids (B, T) are the end-of-sequence token, or None where there are none or no such token."""
    ids, eos = inputs.get("input_ids"), getattr(config, "eos_token_id", None)
    if ids is None or eos is None:
        return None
    return torch.isin(ids, torch.tensor(eos, device=ids.device))
