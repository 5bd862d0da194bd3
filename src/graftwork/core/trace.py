"""What one forward did: every operation as a node of a graph, and every call of a module with what it got and gave.

Tensors are told apart by the memory they look at (storage, offset, shape, strides), so a view of the same numbers is
the same tensor whatever Python object holds it, and an operation in place makes a new node. `root` follows operations
that only pass numbers on (views, copies, casts, dropout at rest): two tensors of one root hold the same numbers.

Nothing here knows what a transformer is: `core/streams.py` reads the graph.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

CARRIES = {"view", "_unsafe_view", "reshape", "alias", "detach", "clone", "_to_copy", "copy_", "lift_fresh"}

_Key = tuple[int, int, tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class Node:
    """One tensor that came to be: the operation, the nodes it read in order, its shape, and when."""

    index: int
    operation: str  # "add", "bmm", …; "given" for what no operation made
    inputs: tuple[int, ...]
    shape: tuple[int, ...]
    time: int
    constant: bool = False  # a parameter, or another tensor that no operation of this forward made


@dataclass(frozen=True)
class Given:
    """A tensor that a call received: as which argument, and its node."""

    argument: tuple[int, str]
    node: int
    tensor: Tensor


@dataclass
class Call:
    """One call of a module: path, what it received, from when until when, and what it returned."""

    path: str
    module: nn.Module
    given: tuple[Given, ...]
    arguments: int  # how many, tensors or not
    entered: int
    left: int = -1
    made: int | None = None  # its output, where that is one tensor
    first: int | None = None  # the first tensor of its output

    def holds(self, other: "Call") -> bool:
        """Whether the other call happened inside this one."""
        return self.entered < other.entered and other.left < self.left


@dataclass
class Trace:
    """Nodes by index with their tensors, and calls in the order in which they ended."""

    nodes: list[Node] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)  # of the nodes; what they held when the forward had ended
    calls: list[Call] = field(default_factory=list)
    outputs: dict[int, list[Call]] = field(default_factory=dict)  # root -> the calls that returned it

    def root(self, node: int) -> int:
        """The node whose numbers these are."""
        while self.nodes[node].operation in CARRIES:
            node = self.nodes[node].inputs[-1 if self.nodes[node].operation == "copy_" else 0]
        return node

    def before(self, node: int, stop: Iterable[int] = ()) -> set[int]:
        """Every node that this one was made from, itself included; the search ends at `stop`."""
        seen, waiting, ends = set(), [node], set(stop)
        while waiting:
            current = waiting.pop()
            if current not in seen:
                seen.add(current)
                waiting += () if current in ends else self.nodes[current].inputs
        return seen

    def inside(self, call: Call) -> list[Call]:
        """The calls that happened inside a call, in the order in which they ended."""
        return [other for other in self.calls if call.holds(other)]


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes a node for every tensor that an operation makes."""

    def __init__(self, trace: Trace, constants: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.trace = trace
        self.clock = 0
        self.known: dict[_Key, int] = {}
        self.written: dict[int, int] = {}  # storage -> the last node written into it
        self.constants = {_key(tensor)[0] for tensor in constants}

    def tick(self) -> int:
        self.clock += 1
        return self.clock

    def node(self, tensor: Tensor) -> int:
        """The node of a tensor; one of its own where nothing seen here made it."""
        key = _key(tensor)
        if key not in self.known:
            written = self.written.get(key[0])
            inputs = () if written is None else (written,)
            self.add(tensor, "given", inputs, constant=key[0] in self.constants)
        return self.known[key]

    def add(self, tensor: Tensor, operation: str, inputs: tuple[int, ...], constant: bool = False) -> None:
        index = len(self.trace.nodes)
        self.trace.nodes.append(Node(index, operation, inputs, tuple(tensor.shape), self.tick(), constant))
        self.known[_key(tensor)] = index
        self.trace.tensors.append(tensor)  # kept alive: memory must not be another tensor's while it tells them apart

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        read = tuple(self.node(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
        output = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        changes = func._schema.is_mutable
        for leaf in tree_leaves(output):
            if isinstance(leaf, Tensor) and (changes or _key(leaf) not in self.known):
                self.add(leaf, name, read)
                if changes:
                    self.written[_key(leaf)[0]] = self.known[_key(leaf)]
        return output


def _key(tensor: Tensor) -> _Key:
    return tensor.untyped_storage()._cdata, int(tensor.storage_offset()), tuple(tensor.shape), tuple(tensor.stride())


def trace(model: nn.Module, inputs: Mapping[str, Any]) -> Trace:
    """Run a model once and return what it did. The hooks for that are gone afterwards."""
    found = Trace()
    recorder = _Recorder(found, model.parameters())
    open_calls: list[Call] = []
    handles: list[RemovableHandle] = []
    for path, module in model.named_modules():
        handles += _watch(path, module, recorder, open_calls)
    try:
        with torch.no_grad(), recorder:
            model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    for call in found.calls:
        if call.made is not None:
            found.outputs.setdefault(found.root(call.made), []).append(call)
    return found


def _watch(path: str, module: nn.Module, recorder: _Recorder, open_calls: list[Call]) -> list[RemovableHandle]:
    places = _arguments(module)

    def enter(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        named = [((i, places[i] if i < len(places) else ""), value) for i, value in enumerate(args)]
        named += [((places.index(key) if key in places else len(places), key), kwargs[key]) for key in kwargs]
        given = [Given(place, recorder.node(value), value) for place, value in named if isinstance(value, Tensor)]
        open_calls.append(Call(path, module, tuple(given), len(named), recorder.tick()))

    def leave(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        call = open_calls.pop()
        tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        call.first = recorder.node(tensors[0]) if tensors else None
        call.made = call.first if isinstance(output, Tensor) else None
        call.left = recorder.tick()
        recorder.trace.calls.append(call)

    return [
        module.register_forward_pre_hook(enter, with_kwargs=True),
        module.register_forward_hook(leave),
    ]


def _arguments(module: nn.Module) -> list[str]:
    kinds = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    return [name for name, found in signature(module.forward).parameters.items() if found.kind in kinds]
