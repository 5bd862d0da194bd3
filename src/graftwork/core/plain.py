"""A module of plain torch as a model of transformers: what a Backbone asks of a model, supplied for one that has none.

The module stays the object it is, under `inner`. `input_ids` or `inputs_embeds` become its first argument; a head reads
its last hidden state, the last tensor (B, T, D) that one of its modules returned on the way to the output.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from graftwork.core.families import Family
from graftwork.core.outlet import Outlet
from graftwork.errors import AdapterError, BackboneError

_PADDING = "src_key_padding_mask"  # torch's own name, and its sense: true where there is no token


class PlainModel(PreTrainedModel):  # type: ignore[misc]
    """A plain module with the facts that a configuration states.

    Raises BackboneError for a module whose last hidden state no module of it returns.
    """

    config_class = PreTrainedConfig
    base_model_prefix = ""  # the trunk is all of it

    def __init__(self, inner: nn.Module, outlet: Outlet) -> None:
        if outlet.path is None:
            raise BackboneError(
                f"no module of a {type(inner).__name__} returns its last hidden state (rows, tokens, {outlet.width}), "
                "which heads read: let its last norm, or all of it but its own head, be one module"
            )
        config = PreTrainedConfig()
        config.hidden_size, config.model_type, config.name_or_path = outlet.width, type(inner).__name__, ""
        super().__init__(config)
        self.inner = inner
        self.hidden = outlet.path
        self._caught: Tensor | None = None
        for module in inner.modules():
            if isinstance(module, nn.TransformerEncoder):
                module.use_nested_tensor = False  # under a mask it would pack the rows, and adapters need them apart
        self.train(inner.training)

    def listen(self) -> RemovableHandle:
        """Place the hook that keeps the last hidden state; after those of the sites, which may change it."""
        return self.inner.get_submodule(self.hidden).register_forward_hook(self._catch)

    def _catch(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        self._caught = output

    @property
    def input_names(self) -> list[str]:
        """The inputs that can be given by name, besides the first."""
        own = _arguments(self.inner)[1:]
        return ["input_ids", "inputs_embeds", *own, *(["attention_mask"] if _PADDING in own else [])]

    def named(self, probe: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of the module's own forward as arguments of this one, which then returns the last hidden state."""
        first = _arguments(self.inner)[0]
        return {"input_ids" if key == first else key: value for key, value in probe.items()} | {"return_dict": True}

    @property
    def structure(self) -> list[str]:
        """What the modules compute besides their weights: classes, and the plain values that they hold."""
        modules = self.inner.named_modules()
        return [f"{path}: {type(module).__name__} {sorted(_values(module))}" for path, module in modules]

    def forward(
        self,
        input_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        attention_mask: Tensor | None = None,
        return_dict: bool | None = None,
        **more: Any,
    ) -> Any:
        """ids (B, T) or embeddings (B, T, D) -> the module's own output, or with return_dict the last hidden state."""
        first, *own = _arguments(self.inner)
        if (input_ids is None) == (inputs_embeds is None):
            raise AdapterError(f"a {type(self.inner).__name__} takes one of input_ids and inputs_embeds, as {first!r}")
        if attention_mask is not None and "attention_mask" in own:
            more["attention_mask"] = attention_mask
        elif attention_mask is not None:
            more[_PADDING] = attention_mask == 0
        self._caught = None
        output = self.inner(input_ids if inputs_embeds is None else inputs_embeds, **more)
        caught, self._caught = self._caught, None
        return BaseModelOutput(last_hidden_state=caught) if return_dict else output

    def get_input_embeddings(self) -> None:
        """None: which table holds the words is not known."""
        return

    def get_output_embeddings(self) -> None:
        """None: which module is the vocabulary is not known."""
        return


def inside(family: Family) -> Family:
    """A description of a plain module as one of the PlainModel around it."""
    stacks = [
        replace(
            stack,
            layers=f"inner.{stack.layers}".rstrip("."),
            embed=None if stack.embed is None else f"inner.{stack.embed}",
            prompt=None if stack.prompt is None else f"inner.{stack.prompt}",
        )
        for stack in family.stacks
    ]
    return replace(family, stacks=tuple(stacks))


def _arguments(module: nn.Module) -> list[str]:
    given = signature(module.forward).parameters.values()
    return [one.name for one in given if one.kind not in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)]


def _values(module: nn.Module) -> Iterator[str]:
    for name, value in vars(module).items():
        if name.startswith("_") or name in ("training", "use_nested_tensor"):
            continue
        if isinstance(value, bool | int | float | str | torch.dtype):
            yield f"{name}={value!r}"
        elif callable(value):
            yield f"{name}={getattr(value, '__name__', type(value).__name__)}"
