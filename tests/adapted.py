"""Tiny models that carry adapters and heads whose weights are large enough to be seen in every output."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from graftwork.model import AdapterModel
from tests import tiny


def shaken(module: nn.Module, seed: int) -> None:
    """Give every parameter of a module weights of its own, far from its initial ones."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_((0.2 * torch.randn(parameter.shape, generator=generator)).to(parameter))


def adapted(family: str = "bert", adapters: Iterable[str] = ("a", "b"), heads: Iterable[str] = ()) -> AdapterModel:
    """A tiny model in eval mode with adapters `seq_bn[reduction_factor=4]` and classification heads of two labels."""
    model = AdapterModel(tiny.model(family))
    for name in adapters:
        model.add_adapter(name, "seq_bn[reduction_factor=4]")
    for name in heads:
        model.add_classification_head(name, num_labels=2)
    shaken(model.parts, seed=3)
    return model.eval()


def last(output: Any) -> Tensor:
    """The last hidden state (B, T, D) of a bare trunk's output."""
    hidden: Tensor = output[0]
    return hidden


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    """A copy of everything a module's state dict holds."""
    return {key: value.clone() for key, value in module.state_dict().items()}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    """Whether two snapshots have the same keys, types and bits, in the same order."""
    return list(left) == list(right) and all(
        left[key].dtype == right[key].dtype and torch.equal(left[key], right[key]) for key in left
    )
