"""Full fine-tuning, the baseline of adapters: a copy of the whole model learns, with a head like that of an adapter.

The model that was given stays as it is: it is copied, and the copy is unfrozen or changed so that some of it trains.
Checkpoints hold everything that trains.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from graftwork.model import AdapterModel


class _Loaded(NamedTuple):
    missing_keys: list[str]
    unexpected_keys: list[str]


class FullModel(nn.Module):
    """A copy of a model that has the head, `model`; all of it trains, or what `prepare` made of the copy lets train."""

    accepts_loss_kwargs = False  # the head's loss is a mean

    def __init__(self, model: AdapterModel, head: str, prepare: Callable[[AdapterModel], None] | None = None) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        self.head = head
        if prepare is None:
            self.model.requires_grad_(True)
        else:
            prepare(self.model)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        word_starts: Tensor | None = None,
        pixel_values: Tensor | None = None,
        scored_only: bool = False,
    ) -> Any:
        """A batch of any task -> the AdapterOutput of the head on the bare, unfrozen base.

        Tensors (B, T) or (B, C, T), or images (B, C, H, W); labels as the head has them.
        """
        return self.model(
            input_ids,
            attention_mask,
            token_type_ids,
            pixel_values=pixel_values,
            labels=labels,
            word_starts=word_starts,
            adapters=None,
            head=self.head,
            scored_only=scored_only,
        )

    def activation_checkpointing_enable(
        self,
        activation_checkpointing_kwargs: Mapping[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """As of an AdapterModel."""
        self.model.activation_checkpointing_enable(activation_checkpointing_kwargs, every_n_layers, offload)

    def state_dict(self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        """Every parameter that trains once, tied ones under their first name."""
        return {f"{prefix}{name}": value if keep_vars else value.detach() for name, value in self._trained().items()}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Fill in what `state_dict` gave."""
        own = self._trained()
        with torch.no_grad():
            for name in own.keys() & state_dict.keys():
                own[name].copy_(state_dict[name])
        return _Loaded(sorted(own.keys() - state_dict.keys()), sorted(state_dict.keys() - own.keys()))

    def _trained(self) -> dict[str, nn.Parameter]:
        return {name: value for name, value in self.named_parameters() if value.requires_grad}
