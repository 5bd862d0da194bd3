"""The trunk that the branches of a Parallel share: layers below the first one where they differ run once a row.

Parallel over N compositions answers one row N times. Below the *fork*, the first layer where the programs of some row's
lanes differ, the lanes of a row are one and the same; there the model runs its B rows, and the fork repeats what enters
that layer. With k of L layers below it, N answers cost k + N·(L - k) layers instead of N·L (AdapterDrop, Rücklé et al.
2021, §3: adapters left out of the first layers). Where all that differs in that layer is one site, seen at the norm in
which the layer ends, the fork repeats what that norm reads, and the layer is below it but for this norm. The definition
stays Parallel repeated at the entry of the model; nothing here changes a number beyond the rounding of another batch
size.

A layer is called with more than its hidden states: masks, rotary positions, what a decoder attends to. Which of these
have a row axis cannot be told from their shapes, so families are listed (`SHARING`, held by a test that runs both
ways) with the names of such arguments (`_ROWED`). Any other model repeats rows at its entry.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from graftwork.compose.lower import Lane, runs_of
from graftwork.compose.route import BatchRoute, Program
from graftwork.compose.tree import Composition
from graftwork.core.backbone import Backbone
from graftwork.core.locate import layers_of
from graftwork.core.site import Delta, Direct, Positions, Reading
from graftwork.core.sublayer import seen_at_norm

# model types whose layers are one list, run in order, each once, and called with nothing rowed but what _ROWED names
SHARING = frozenset(
    {
        "bert", "roberta", "xlm-roberta", "electra", "bert-generation", "distilbert", "modernbert", "deberta",
        "deberta-v2", "xmod", "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "olmo", "olmo2",
        "mixtral", "qwen3_moe", "phi", "phi3", "gpt2", "gptj", "gpt_neox", "falcon", "opt", "siglip_text_model",
        "siglip_vision_model", "clip_vision_model", "vit", "beit", "dinov2", "wav2vec2", "hubert",
    }
)  # fmt: skip
# of these, the ones whose layers end in the norm of their last sub-layer, which gives what they return
ENDING = frozenset({"bert", "roberta", "xlm-roberta", "electra", "distilbert", "deberta", "deberta-v2"})
# argument of a layer -> the fewest dimensions with which its first one is the rows
_ROWED = {"attention_mask": 2, "position_ids": 2, "position_embeddings": 3, "lang_ids": 1}
_PLACED = "fork-"  # in Runtime.opened once the hooks are there


@dataclass(frozen=True)
class Fork:
    """Where the lanes of B rows part: layers from `layer` on run lanes under `upper`, those below rows under `lower`.

    depths: for every site its layer. sources: the row of each lane, (lanes,). only: the one site of that layer where
    lanes differ, if it is one. site: the same where rows become lanes at its norm, and not at the entry of the layer.
    """

    layer: int
    layers: int
    rows: int
    sources: Tensor
    lower: BatchRoute
    upper: BatchRoute
    depths: tuple[int, ...]
    only: int | None = None
    site: int | None = None
    _placed: dict[torch.device, Tensor] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def above(self) -> tuple[bool, ...]:
        """For every site, whether it runs lanes."""
        own = [self.site is None or site == self.site for site in range(len(self.depths))]
        return tuple(d > self.layer or (d == self.layer and own[site]) for site, d in enumerate(self.depths))

    @cached_property
    def direct(self) -> dict[int, Direct]:
        """As of a `BatchRoute`."""
        ways = ((site, self.upper if above else self.lower) for site, above in enumerate(self.above))
        return {site: route.direct[site] for site, route in ways if site in route.direct}

    @cached_property
    def at_norm(self) -> "Fork":
        """The fork at the norm of the only site where lanes differ."""
        return replace(self, site=self.only)

    def on(self, backbone: Backbone) -> "Fork":
        """The fork as late as this model allows."""
        late = self.site is None and self.only is not None and _ends_layer(backbone, self.only)
        return self.at_norm if late else self

    @property
    def entered(self) -> int:
        """The first layer that is called with lanes."""
        return self.layer if self.site is None else self.layer + 1

    def lanes(self, tensor: Tensor) -> Tensor:
        """A tensor with a row for each of the B rows, (B, ...) -> (lanes, ...); any other as it is."""
        if tensor.dim() == 0 or tensor.shape[0] != self.rows:
            return tensor
        if tensor.device not in self._placed:
            self._placed[tensor.device] = self.sources.to(tensor.device)
        return tensor.index_select(0, self._placed[tensor.device])

    def whole(self, output: Any) -> Any:
        """The output of a trunk with a row for each lane in all of its tensors; those below the fork have B rows."""
        if isinstance(output, Tensor):
            return self.lanes(output)
        if isinstance(output, tuple):
            return tuple(self.whole(one) for one in output)
        if isinstance(output, ModelOutput):
            for key, value in output.items():
                output[key] = self.whole(value)
        for layer in getattr(output, "layers", ()):  # a cache
            if layer.is_initialized and layer.keys.shape[0] == self.rows:
                layer.batch_select_indices(self.sources.to(layer.keys.device))
        return output

    def __str__(self) -> str:
        lanes = f"{len(self.sources)} lanes of {self.rows} row{'s' * (self.rows > 1)}"
        if self.layer == self.layers:
            return f"{lanes} share all {self.layers} layers"
        if self.site is not None:
            whole = f"{lanes} share {self.layer + 1} of {self.layers} layers"
            return f"{whole} and part at the norm in which layer {self.layer} ends"
        return f"{lanes} share {self.layer} of {self.layers} layers and part at layer {self.layer}"


class Forked:
    """The route of one forward that forks (a `Route`): rows below, lanes above, and what it has repeated so far."""

    def __init__(self, fork: Fork) -> None:
        self.fork = fork
        self.direct = fork.direct
        self.widened = {} if fork.site is None else {fork.site: fork.lanes}
        self._lanes: dict[int, tuple[Tensor, Tensor]] = {}  # identity of a tensor -> itself, which keeps it, and lanes

    def delta(self, site: int, reading: Reading) -> Delta | None:
        """As `Route.delta`."""
        if not self.fork.above[site]:
            return self.fork.lower.delta(site, reading)
        return self.fork.upper.delta(site, self._seen(reading))

    def positions(self, site: int, reading: Reading) -> Positions | None:
        """As `Route.positions`."""
        if not self.fork.above[site]:
            return self.fork.lower.positions(site, reading)
        return self.fork.upper.positions(site, self._seen(reading))

    def prompted(self, site: int, embeddings: Tensor) -> Tensor | None:
        """As `Route.prompted`: nothing, for batches with prompts do not fork."""
        return None

    def lengthened(self, row: Tensor, fill: int, pad: int) -> Tensor:
        """As `Route.lengthened`."""
        return row

    def inverse(self, site: int, hidden: Tensor) -> Tensor | None:
        """As `Route.inverse`, of the lanes."""
        return self.fork.upper.inverse(site, hidden)

    def entering(
        self, names: Sequence[str], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a layer that runs lanes; names: of its parameters, the first one its hidden states."""
        given = [self._given(name, value) for name, value in zip(names, args, strict=False)]
        named = {key: self._given(key, value) for key, value in kwargs.items()}
        if given:
            given[0] = self.fork.lanes(given[0])
        elif isinstance(named.get(names[0]), Tensor):
            named[names[0]] = self.fork.lanes(named[names[0]])
        return (*given, *args[len(given) :]), named

    def _given(self, name: str, value: Any) -> Any:
        least = _ROWED.get(name)
        if least is None:
            return value
        if isinstance(value, tuple):
            return tuple(self._repeated(one) if one.dim() >= least else one for one in value)
        return self._repeated(value) if isinstance(value, Tensor) and value.dim() >= least else value

    def _repeated(self, tensor: Tensor) -> Tensor:
        """The lanes of a tensor that several layers are called with, made once; a view where there is but one row."""
        found = self._lanes.get(id(tensor))
        if found is None:
            alone = self.fork.rows == tensor.shape[0] == 1
            lanes = tensor.expand(len(self.fork.sources), *tensor.shape[1:]) if alone else self.fork.lanes(tensor)
            found = self._lanes[id(tensor)] = (tensor, lanes)
        return found[1]

    def _seen(self, reading: Reading) -> Reading:
        return reading if reading.mask is None else reading.masked(self._repeated(reading.mask))


class _Entry:
    """The hook on a layer that may run lanes."""

    def __init__(self, backbone: Backbone, number: int, layer: nn.Module) -> None:
        self.runtime, self.number = backbone.runtime, number
        self.names = [name for name in signature(type(layer).forward).parameters if name != "self"]

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Forward pre-hook: what rows share is repeated for their lanes."""
        route = self.runtime.route
        if not isinstance(route, Forked) or self.number < route.fork.entered:
            return None
        return route.entering(self.names, args, kwargs)


def shares(backbone: Backbone) -> bool:
    """Whether rows can become lanes inside this model, now; its hooks are placed by the first call that asks.

    Not in a model that trains, whose dropout would be drawn once for several lanes, and not where anything is compiled:
    what was compiled before the hooks were there would go on without them.
    """
    stacks = {site.stack for site in backbone.sites if site.layer >= 0}
    if backbone.config.model_type not in SHARING or len(stacks) > 1 or backbone.model.training:
        return False
    layers = _layers(backbone)
    modules = (backbone.model, backbone.trunk, *layers)
    if torch.compiler.is_compiling() or any(one._compiled_call_impl is not None for one in modules):
        return False
    if len(layers) != backbone.layers:
        return False
    if _PLACED not in backbone.runtime.opened:
        with backbone.runtime.running(None):  # no other thread is in these layers meanwhile
            if _PLACED not in backbone.runtime.opened:
                for number, layer in enumerate(layers[1:], start=1):
                    layer.register_forward_pre_hook(_Entry(backbone, number, layer).enter, with_kwargs=True)
                backbone.runtime.opened += _PLACED
    return True


def _ends_layer(backbone: Backbone, site: int) -> bool:
    """Whether a site is seen at its norm, and what that norm gives is what its layer returns."""
    own = backbone.located[site]
    last = max(one.site.index for one in backbone.located if one.row and one.site.depth == own.site.depth)
    ending = backbone.config.model_type in ENDING and own.row is not None and site == last
    return ending and seen_at_norm(own, backbone.located)


def _layers(backbone: Backbone) -> list[nn.Module]:
    name = backbone.last.stack
    return layers_of(backbone.trunk, next(stack for stack in backbone.family.stacks if stack.name == name))


def fork_of(
    lanes: Sequence[Lane] | None,
    upper: BatchRoute,
    depths: Sequence[int],
    program: Callable[[Composition], Program],
    routed: Callable[[Sequence[Lane]], BatchRoute],
) -> Fork | None:
    """Where the lanes of a batch part, or None where its rows are to be repeated at the entry of the model.

    depths: for every site its layer, -1 for none. program: by the reference, whose nodes are equal exactly where they
    are made of the same modules. routed: the route of lanes, one a row.
    """
    if lanes is None or upper.sources is None or upper.prompt is not None or not depths:
        return None
    trees: dict[int, dict[Composition, None]] = {}
    for source, tree in lanes:
        trees.setdefault(source, {})[tree] = None
    layers = 1 + max(depths)
    sets = {tuple(own) for own in trees.values() if len(own) > 1}
    differing = {site for own in sets for site in _differing(own, len(depths), program)}
    layer = min((depths[site] for site in differing), default=layers)
    only = _alone(differing, depths, layer)
    if layer < 0 or (layer == 0 and only is None):
        return None
    firsts = [(source, next(iter(trees[source]))) for source in sorted(trees)]
    return Fork(layer, layers, len(firsts), upper.sources, routed(firsts), upper, tuple(depths), only)


def _alone(sites: Iterable[int], depths: Sequence[int], layer: int) -> int | None:
    """The one of the sites that is in a layer; None where there are more, or none."""
    own = [site for site in sites if depths[site] == layer]
    return own[0] if len(own) == 1 else None


def _differing(trees: Sequence[Composition], sites: int, program: Callable[[Composition], Program]) -> Iterator[int]:
    """The sites where some of the compositions compute something else than the others."""
    runs = [[(length, program(part)) for length, part in runs_of(tree)] for tree in trees]
    for site in range(sites):
        first, *others = ([(length, nodes[site]) for length, nodes in own] for own in runs)
        if any(one != first for one in others) and any(node is not None for own in (first, *others) for _, node in own):
            yield site
