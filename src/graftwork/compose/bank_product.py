"""The one product of a bank: each item of a batch times the matrix in its own slot.

    y = x·W[slot] + b[slot]          x (N, I), W (S, I, O), b (S, O); an *item* is a row of T tokens, or a single token

Which of the ways to do it is fastest depends on the device, the dtype, the sizes and the slots:

    view      one batched product on a view of the slab, where the slots of the items are s, s + 1, s + 2, …
    loop      a product for each run of items that share a slot, on views of the slab: reads each weight once
    sorted    the same after the items were put in the order of their slots, where equal ones do not lie together
    gather    one batched product with a copy of the weights for each item
    grouped   torch's grouped matrix product over the items in the order of their slots
    kernel    on a GPU, where Triton is there: one kernel that reads each slot where it lies (`bank_triton.py`)

so it is measured, once for each kind of call and process, with the tensors of that call. After
`torch.use_deterministic_algorithms(True)` nothing is measured and every item is multiplied alone (`gather`), so that
what other items do never changes its bits. Knows nothing of adapters and sites.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias, cast

import torch
from torch import Tensor
from torch.nn import functional

from graftwork.compose.bank_kernels import bank_triton, has_kernel
from graftwork.compose.bank_measure import quickest
from graftwork.compose.bank_slots import Routing, Traced

_COPY_LIMIT = 2**28  # bytes of weights that `gather` may copy
_ALIGNED = 16  # bytes: the strides of a grouped product


@dataclass(frozen=True, slots=True)
class Call:
    """One product: x (N, I), W (S, I, O), and what is added: b (S, O), or (N, O), the same for no slot, or neither."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    onto: Tensor | None
    routing: Routing

    @property
    def per(self) -> int:
        """Rows of x an item."""
        return self.x.shape[0] // len(self.routing.slots)


Backend: TypeAlias = Callable[[Call], Tensor]


def product(x: Tensor, weight: Tensor, bias: Tensor | None, onto: Tensor | None, routing: Routing | Traced) -> Tensor:
    """x·W[slot] + (b[slot] or what it is added to), (N, O), by the way that is fastest here."""
    if isinstance(routing, Traced):
        return _traced(x, weight, bias, onto, routing.slots)
    call = Call(x, weight, bias, onto, routing)
    if learns(x, onto):
        return gather(call)
    kind = x.shape[0], weight.shape, x.dtype, x.device, onto is None, torch.are_deterministic_algorithms_enabled()
    way = routing.ways.get(kind)
    if way is None:
        way = routing.ways[kind] = BACKENDS[chosen(call)]
    return way(call)


def learns(*given: Tensor | None) -> bool:
    """Whether a gradient is wanted of something, which neither kernels nor writes into a result can give."""
    return torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in given)


@torch.library.custom_op("graftwork::slot_product", mutates_args=())
def slot_product(x: Tensor, weight: Tensor, bias: Tensor | None, onto: Tensor | None, slots: Tensor) -> Tensor:
    """`product` as one operation of a compiled graph: on a CPU slots can be looked at, on a GPU there is a kernel."""
    if x.device.type == "cpu":
        return product(x, weight, bias, onto, Routing(tuple(slots.tolist())))
    return bank_triton.slot_product(x, weight, bias, onto, slots)


@slot_product.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, onto: Tensor | None, slots: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[2])


def _traced(x: Tensor, weight: Tensor, bias: Tensor | None, onto: Tensor | None, slots: Tensor) -> Tensor:
    if (x.device.type == "cpu" or has_kernel(x, weight)) and not learns(x, onto):
        return cast(Tensor, slot_product(x, weight, bias, onto, slots))
    chosen = weight.index_select(0, slots)
    start = None if bias is None else bias.index_select(0, slots)
    return _batched(x, chosen, start, onto)


def loop(call: Call) -> Tensor:
    """A product for each run, written to its place."""
    per, runs = call.per, call.routing.runs
    out = call.x.new_empty(call.x.shape[0], call.weight.shape[2])
    sizes = [(stop - start) * per for _, start, stop in runs]
    given, made = torch.split(call.x, sizes), torch.split(out, sizes)
    matrices = call.routing.views(call.weight)
    if call.bias is None and call.onto is None:
        for x, y, matrix in zip(given, made, matrices, strict=True):
            torch.mm(x, matrix, out=y)
        return out
    added = call.routing.views(call.bias) if call.bias is not None else torch.split(cast(Tensor, call.onto), sizes)
    for x, y, matrix, start in zip(given, made, matrices, added, strict=True):
        torch.addmm(start, x, matrix, out=y)
    return out


def by_slot(call: Call) -> Tensor:
    """The loop over items in the order of their slots."""
    return _in_order(call, loop)


def grouped(call: Call) -> Tensor:
    """torch's grouped product over items in the order of their slots."""
    return _in_order(call, _grouped)


def _grouped(call: Call) -> Tensor:
    slots, ends = call.routing.bounds(call.x.device)
    offsets = (ends * call.per).to(torch.int32)
    out = functional.grouped_mm(call.x, call.weight.index_select(0, slots), offs=offsets)
    return _added(call, out)


def _added(call: Call, out: Tensor) -> Tensor:
    if call.onto is not None:
        return out + call.onto
    if call.bias is None:
        return out
    shape = (len(call.routing.slots), call.per, -1)
    return (out.view(shape) + call.bias.index_select(0, call.routing.on(out.device)).unsqueeze(1)).view(out.shape)


def _in_order(call: Call, way: Backend) -> Tensor:
    routing, there, back = call.routing.ordered(call.x.device)

    def moved(tensor: Tensor, items: Tensor) -> Tensor:
        if call.per == 1:
            return tensor.index_select(0, items)
        return tensor.view(len(items), call.per, -1).index_select(0, items).view(tensor.shape)

    onto = None if call.onto is None else moved(call.onto, there)
    return moved(way(Call(moved(call.x, there), call.weight, call.bias, onto, routing)), back)


def view(call: Call) -> Tensor:
    """One batched product on a view of the slab; for consecutive slots."""
    first, count = call.routing.slots[0], len(call.routing.slots)
    chosen = slice(first, first + count)
    return _batched(call.x, call.weight[chosen], None if call.bias is None else call.bias[chosen], call.onto)


def gather(call: Call) -> Tensor:
    """One batched product with a copy of the weights for each item."""
    slots = call.routing.on(call.x.device)
    bias = None if call.bias is None else call.bias.index_select(0, slots)
    return _batched(call.x, call.weight.index_select(0, slots), bias, call.onto)


def kernel(call: Call) -> Tensor:
    """A kernel that reads the slots where they lie."""
    slots = call.routing.on(call.x.device)
    return bank_triton.slot_product(call.x, call.weight, call.bias, call.onto, slots)  # past torch's dispatcher


def _batched(x: Tensor, weight: Tensor, bias: Tensor | None, onto: Tensor | None) -> Tensor:
    """The products of n items with a matrix each, (n, I, O), and a bias each, (n, O)."""
    count, wide = weight.shape[0], weight.shape[2]
    items = x.view(count, -1, x.shape[1])
    if onto is not None:
        return torch.baddbmm(onto.view(count, -1, wide), items, weight).view(-1, wide)
    if bias is not None:
        return torch.baddbmm(bias.unsqueeze(1), items, weight).view(-1, wide)
    return torch.bmm(items, weight).view(-1, wide)


BACKENDS: dict[str, Backend] = {
    "view": view,
    "loop": loop,
    "sorted": by_slot,
    "gather": gather,
    "grouped": grouped,
    "kernel": kernel,
}


def possible(call: Call) -> list[str]:
    """The backends that can do a product."""
    routing, weight = call.routing, call.weight
    kernels = ["kernel"] if has_kernel(call.x, weight) else []
    if routing.consecutive:
        return ["view", "loop", *kernels]
    names = ["loop", *kernels]
    if routing.distinct < len(routing.runs):
        names.append("sorted")
    size = weight.element_size()
    if len(routing.slots) * weight.shape[1] * weight.shape[2] * size <= _COPY_LIMIT:
        names.append("gather")
    strides = (*weight.shape[1:], call.x.stride(0))
    aligned = all(stride * size % _ALIGNED == 0 for stride in strides)
    if aligned and weight.dtype in (torch.float32, torch.bfloat16, torch.float16) and weight.device.type != "mps":
        names.append("grouped")
    return names


def chosen(call: Call) -> str:
    """The backend for a product: by measurement, unless algorithms are to be deterministic."""
    ways = possible(call)
    if torch.are_deterministic_algorithms_enabled():
        return "gather" if "gather" in ways or "view" in ways else "loop"
    routing = call.routing
    sizes = (len(routing.slots), len(routing.runs), routing.distinct, call.per)
    kind = (
        call.x.device, call.x.dtype, *call.weight.shape[1:], *map(int.bit_length, sizes), routing.consecutive,
        call.onto is None, torch.get_num_threads(),
    )  # fmt: skip
    name = quickest(kind, {name: partial(BACKENDS[name], call) for name in ways}, call.x.device)
    return name if name in ways else "kernel" if "kernel" in ways else "loop"  # not all of one kind can do the same


def known_as_view(x: Tensor, weight: Tensor, bias: Tensor, routing: Routing) -> bool:
    """Whether a product with biases is done on a view of the slab."""
    return chosen(Call(x, weight, bias, None, routing)) == "view"
