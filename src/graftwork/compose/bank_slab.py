"""Slabs: the steps of one folded structure at one site, each weight with a leading axis of S slots.

    structure  a node's steps without their weights: what is read and written, activations, width classes, members

Widths are rounded up to a class, with zeros: a column that is zero comes to f(0), and meets a row of zeros on its way
up. A slab runs the very steps of `wide.py` and `plain.py`; only its products take the weights of each item's slot.
"""

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor
from torch.nn import functional

from graftwork.compose.bank_bottleneck import bottleneck, kernel_of
from graftwork.compose.bank_kernels import try_kernels
from graftwork.compose.bank_product import known_as_view, product
from graftwork.compose.bank_slots import Routing, Traced
from graftwork.compose.direct import onto
from graftwork.compose.plain import Plain, reads_stream
from graftwork.compose.reference import Node
from graftwork.compose.run import Run, check_norm
from graftwork.compose.wide import Down, Gate, Join, Mix, Step, Up, Wide, Write
from graftwork.core.activations import operator_of
from graftwork.core.site import Delta, Direct, Reading

Structure: TypeAlias = tuple[Any, ...]
_Norm: TypeAlias = Callable[[Tensor], Tensor]
_CLASSES = (8, 16, 32, 48, 64, 96, 128, 192, 256)


def width_class(width: int) -> int:
    """The least class that holds a bottleneck of M columns: 8, 16, 32, 48, 64, 96, 128, 192, 256, then by 128."""
    return next((size for size in _CLASSES if size >= width), -(-width // 128) * 128)


class Unbankable(Exception):
    """What cannot be in a bank; the message is the reason. Never leaves `banks.py`."""


def structure(node: Node) -> Structure:
    """Everything about a folded node but its weights. Raises Unbankable for one that shares it with no other."""
    if isinstance(node, Plain):
        (down, _), (up, _) = node.down, node.up
        flags = (node.read, _activation(node.activation), node.after, node.normed)
        return (Plain, *flags, down.shape[1], width_class(down.shape[0]), up.shape[0], up.dtype, up.device)
    if not isinstance(node, Wide):
        raise Unbankable("only what folds to one wide bottleneck at each site has a slot")
    weight = next((weight for weight in node.weights), None)
    return (Wide, node.dtype, None if weight is None else weight.device, _outline(node))


def _outline(value: Any) -> Any:
    """A step without its numbers."""
    if isinstance(value, Tensor):
        return tuple(value.shape)
    if isinstance(value, Mix):  # which columns are whose is a matter of structure
        return (Mix, value.features, value.t, value.c, tuple(value.segments.sum(dim=0).tolist()))
    if is_dataclass(value):
        return (type(value), *(_outline(getattr(value, field.name)) for field in fields(value)))
    if isinstance(value, tuple):
        return tuple(map(_outline, value))
    return _activation(value) if callable(value) and not isinstance(value, torch.dtype) else value


def _activation(function: Any) -> tuple[object, str]:
    module = getattr(function, "__self__", function)
    if isinstance(module, torch.nn.Module) and any(True for _ in module.parameters()):
        raise Unbankable(f"its activation {type(module).__name__} has weights of its own")
    return type(module), repr(module)


class _Routed(Run):
    """A run whose products take the weights of each item's slot."""

    __slots__ = ("routing",)

    def __init__(self, reading: Reading, delta: Delta, dtype: torch.dtype, routing: Routing | Traced) -> None:
        super().__init__(reading, delta, dtype)
        self.routing = routing

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None, onto: Tensor | None) -> Tensor:
        """As `Run.product`, with a slab of weights (S, in, out) and biases (S, out)."""
        return product(x, weight, bias, onto, self.routing)


def slot_weights(node: Plain | Wide) -> list[Tensor]:
    """The weights of a node that each slot has for itself, in the order of its steps."""
    found: list[Tensor] = []

    def note(weight: Tensor) -> Tensor:
        found.append(weight)
        return weight

    _with(node, note)
    return found


def _with(node: Plain | Wide, change: Callable[[Tensor], Tensor]) -> Plain | Wide:
    """The node with other weights; what is a matter of structure stays."""

    def up(one: Up | None) -> Up | None:
        if one is None or not one.features:
            return one
        return replace(one, weight=change(one.weight), bias=None if one.bias is None else change(one.bias))

    def step(one: Step) -> Step:
        if isinstance(one, Down):
            return replace(one, weight=change(one.weight), bias=change(one.bias))
        if isinstance(one, Join):
            return replace(one, parts=tuple((span, change(matrix)) for span, matrix in one.parts))
        return replace(one, up=cast(Up, up(one.up))) if isinstance(one, Write) else one

    if isinstance(node, Plain):
        down, start = map(change, node.down)
        outer, constant = map(change, node.up)
        return replace(node, down=(down, start), up=(outer, constant))
    return replace(node, steps=tuple(map(step, node.steps)), before=up(node.before), after=up(node.after))


def _laid_in(node: Plain | Wide) -> Plain | Wide:
    """The node as it lies in a slab: matrices (in, out), a Plain as wide as its class."""
    if isinstance(node, Wide):
        return node
    (down, start), (up, constant) = node.down, node.up
    extra = width_class(len(start)) - len(start)
    inner = functional.pad(down.T, (0, extra)), functional.pad(start, (0, extra))
    return replace(node, down=inner, up=(functional.pad(up.T, (0, 0, 0, extra)), constant))


class Slab:
    """The steps of one structure at one site, with the weights of S slots. `like`: one of that structure."""

    def __init__(self, like: Plain | Wide, slots: int) -> None:
        self.structure = structure(like)
        self.node = _with(_laid_in(like), lambda weight: weight.new_empty(slots, *weight.shape))
        self._fused = kernel_of(like.activation) if isinstance(like, Plain) else None
        self.clear(0)
        try_kernels(slot_weights(self.node)[0].device)

    @property
    def moves(self) -> bool:
        """Whether zeros in a slot change something still: the stream is moved to where the change is written."""
        node = self.node
        ups = (node.before, node.after) if isinstance(node, Wide) else ()
        return any(up is not None and (up.terms or up.carry is not None) for up in ups)

    @property
    def gated(self) -> bool:
        """Whether it reads more than one token of a row at a time."""
        return isinstance(self.node, Wide) and any(isinstance(step, Gate) for step in self.node.steps)

    @property
    def nbytes(self) -> int:
        """Of all slots."""
        return sum(weight.nbytes for weight in slot_weights(self.node))

    def write(self, slot: int, node: Plain | Wide) -> None:
        """Put the weights of a node of this structure into a slot."""
        for mine, theirs in zip(slot_weights(self.node), slot_weights(_laid_in(node)), strict=True):
            mine[slot].copy_(theirs)

    def clear(self, slot: int) -> None:
        """Put zeros into a slot."""
        for weight in slot_weights(self.node):
            weight[slot].zero_()

    def grow(self, slots: int) -> None:
        """Have more slots, the old ones as they were."""

        def grown(old: Tensor) -> Tensor:
            new = old.new_empty(slots, *old.shape[1:])
            new[: len(old)].copy_(old)
            return new

        self.node = _with(self.node, grown)

    def direct(self, routing: Routing, batch: int) -> Direct | None:
        """The shorter way through its site for a batch with a slot for each row, in slots that follow one another."""
        node = self.node
        if not isinstance(node, Plain) or node.after or not node.normed or node.read is not reads_stream:
            return None
        if not routing.consecutive or len(routing.slots) != batch:
            return None
        chosen = slice(routing.slots[0], routing.slots[0] + batch)
        (down, start), (up, constant) = ((weight[chosen], bias[chosen, None]) for weight, bias in (node.down, node.up))
        activate, dtype, batched = operator_of(node.activation), up.dtype, torch.baddbmm
        known: dict[tuple[int, bool], bool] = {}  # (tokens, deterministic) -> whether a view is quickest

        def run(summed: Tensor, norm: _Norm, output: Tensor | None, residual: Tensor | None) -> Tensor | None:
            if self.node is not node or len(summed) != batch or summed.dtype is not dtype:
                return None  # a slab that has grown lies elsewhere, and beams are several rows of a slot
            if summed.requires_grad and torch.is_grad_enabled():
                return None  # a write to another slot would count as one to these
            kind = summed.shape[1], torch.are_deterministic_algorithms_enabled()
            if kind not in known:
                rows = summed.flatten(0, 1)
                wide = known_as_view(rows, *node.down, routing)
                known[kind] = wide and known_as_view(rows.new_empty(len(rows), up.shape[1]), *node.up, routing)
            if not known[kind]:
                return None
            return onto(batched(constant, activate(batched(start, norm(summed), down)), up), summed)

        return run

    def __call__(self, reading: Reading, delta: Delta, routing: Routing | Traced) -> Delta:
        """What the items of a reading change, each by the weights in its slot. RoutingError as `Wide`."""
        node = self.node
        check_norm(reading, node.normed)
        if isinstance(node, Plain):
            return _plain(node, reading, delta, routing, self._fused)
        change = node.through(_Routed(reading, delta, node.dtype, routing))
        if not self.moves or not routing.idle:
            return change
        return Delta(routing.only_used(change.before), routing.only_used(change.after))


def _plain(node: Plain, reading: Reading, delta: Delta, routing: Routing | Traced, fused: str | None) -> Delta:
    x, out = node.read(reading, delta), reading.like.dtype
    flat = x.reshape(-1, x.shape[-1]).to(node.down[0].dtype)
    change = bottleneck(flat, node.down, node.activation, node.up, routing, fused)
    change = change.view(*x.shape[:-1], change.shape[-1]).to(out)
    return Delta(after=change) if node.after else Delta(before=change)
