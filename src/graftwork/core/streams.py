"""The residual stream of one layer, read from a trace: which sums it passes, what is added, which norms it meets.

The stream is followed backwards, from the layer's output to its input. It may pass three things: operations that only
carry numbers, norms, and sums of which one operand is again the stream; the other operand is a branch, a sub-layer's
output. Of every branch this file lists the modules that return it (h₀), the modules that receive the stream before it
(r), and the norm between (sandwich) or behind (post-LN). A norm is told by what it does: it gives the same numbers for
a thousandfold and a ten-thousandfold input.

It does not know what kind a branch is: `core/discover.py` perturbs tokens for that.
"""

from dataclasses import dataclass, replace

import torch
from torch import nn

from graftwork.core.trace import Call, Trace

Argument = tuple[int, str]


@dataclass(frozen=True)
class Branch:
    """One residual add of a layer. Paths are relative to the layer, the best choice first.

    outputs: modules that return h₀. residuals: modules that receive r, each with the argument. norm: after the add.
    inner: a norm between h₀ and the add. beside: the number of the branch that is added to the same residual before.
    shared: the module that returns h₀ serves other branches in turn. flat: h₀ and r have rows and tokens joined.
    start, end: the nodes of r and h₀.
    """

    outputs: tuple[str, ...]
    residuals: tuple[tuple[str, Argument], ...]
    start: int
    end: int
    norm: str | None = None
    inner: str | None = None
    beside: int | None = None
    shared: bool = False
    flat: bool = False


class Unreadable(Exception):
    """Why a layer's stream could not be read; caught where the answer is put together."""


@dataclass(frozen=True)
class _Sum:
    node: int
    stream: int
    branch: int


class Layer:
    """One call of one layer inside a trace."""

    def __init__(self, trace: Trace, call: Call) -> None:
        self.trace = trace
        self.call = call
        self.inside = trace.inside(call)
        self.shape = () if call.first is None else trace.nodes[call.first].shape
        self.joined = (self.shape[0] * self.shape[1], *self.shape[2:]) if len(self.shape) > 1 else ()
        self.entry = next((g.node for g in call.given if trace.nodes[g.node].shape == self.shape), None)
        self.argument: Argument = next((g.argument for g in call.given if g.node == self.entry), (0, ""))
        self.stopped = ""
        self._paths: dict[int, tuple[_Sum | Call, ...] | None] = {}
        self._sums: dict[int, int] = {}  # number of a branch -> the sum that ends with it

    def branches(self, rows: int) -> tuple[Branch, ...]:
        """Every residual add of this layer, in the forward's order; rows: of the input. Raises Unreadable."""
        if self.entry is None or self.call.first is None or len(self.shape) != 3:
            raise Unreadable(f"it does not map one (rows, tokens, width) tensor to another: its output is {self.shape}")
        if self.shape[0] != rows and self.shape[1] == rows:
            raise Unreadable(
                f"its stream is {self.shape}, tokens before rows; every row has its own adapters here, so rows must "
                "come first (batch_first=True)"
            )
        path = self._stream(self.call.first)
        if path is None:
            raise Unreadable(f"its stream could not be followed back from the output: {self.stopped}")
        found: list[Branch] = []
        for number, step in enumerate(path):
            if isinstance(step, _Sum):
                following = path[number + 1] if number + 1 < len(path) else None
                norm = self.path(following) if isinstance(following, Call) else None
                found += self._at(step, norm, found)
        if not found:
            raise Unreadable("nothing is added to its stream")
        return tuple(found)

    def reads_outside(self, branch: Branch) -> bool:
        """Whether h₀ is made from other states (rows, tokens, width) that the layer receives, not by way of r."""
        made = self.trace.before(branch.end, stop=[branch.start])
        states = [given for given in self.call.given if given.tensor.is_floating_point() and given.tensor.dim() == 3]
        return any(given.node in made for given in states if given.node != self.entry)

    # -- following the stream -----------------------------------------------------------------------------------------

    def _stream(self, node: int) -> tuple[_Sum | Call, ...] | None:
        """What the stream passes from the layer's input to this node, or None where the node is not on it."""
        root = self.trace.root(node)
        if root not in self._paths:
            self._paths[root] = None  # a cycle cannot be; while we look, the answer is no
            self._paths[root] = self._trodden(root)
        return self._paths[root]

    def _trodden(self, root: int) -> tuple[_Sum | Call, ...] | None:
        assert self.entry is not None
        if root == self.trace.root(self.entry):
            return ()
        node = self.trace.nodes[root]
        for call in self._returning(root):
            if _is_norm(call):
                before = self._stream(call.given[0].node)
                return None if before is None else (*before, call)
        if node.operation in ("add", "add_") and len(node.inputs) == 2:
            pair = [(i, self._stream(i)) for i in node.inputs if self.trace.nodes[i].shape == node.shape]
            on = [(i, path) for i, path in pair if path is not None]
            if len(pair) == 2 and len(on) == 1:
                (stream, path), branch = on[0], next(i for i in node.inputs if i != on[0][0])
                reached = self.trace.root(self.entry) in self.trace.before(branch)
                return (*path, _Sum(root, stream, branch)) if reached else path
        if not self.stopped:
            self.stopped = f"it comes out of the operation {node.operation!r}, shape {node.shape}"
        return None

    # -- describing one sum -------------------------------------------------------------------------------------------

    def _at(self, step: _Sum, norm: str | None, before: list[Branch]) -> list[Branch]:
        parts = self._parts(step.branch)
        made: list[Branch] = []
        for number, part in enumerate(parts):
            last = number + 1 == len(parts)
            one = self._branch(part, step.stream, norm if last else None)
            if number:
                one = replace(one, beside=len(before) + number - 1, residuals=made[0].residuals)
            elif not one.residuals and before and self._stands_beside(one, step):
                one = replace(one, beside=len(before) - 1, residuals=before[-1].residuals)
            if not one.residuals:
                raise Unreadable(
                    f"no module inside receives the residual to which {one.outputs[0]!r} is added, so it cannot be seen"
                )
            made.append(one)
        self._sums[len(before) + len(made) - 1] = self.trace.root(step.node)
        return made

    def _stands_beside(self, one: Branch, step: _Sum) -> bool:
        """Whether a branch is added to the sum of the branch before it, without having read that sum."""
        last = self._sums.get(max(self._sums, default=-1))
        return last == self.trace.root(step.stream) and last not in self.trace.before(one.end)

    def _parts(self, node: int) -> list[int]:
        """The branches that a sum adds to one residual: two where attention and feed-forward stand side by side."""
        root = self.trace.root(node)
        found = self.trace.nodes[root]
        within = any(call.entered < found.time < call.left for call in self._returning(root))
        if within or found.operation not in ("add", "add_") or len(found.inputs) != 2:
            return [node]
        shapes = {self.trace.nodes[i].shape for i in found.inputs}
        entry = self.trace.root(self.entry or 0)
        sides = [i for i in found.inputs if entry in self.trace.before(i)]
        if shapes != {found.shape} or len(sides) != 2 or not all(self._returning(self.trace.root(i)) for i in sides):
            return [node]
        return sorted((part for side in sides for part in self._parts(side)), key=self.trace.root)

    def _branch(self, node: int, stream: int, norm: str | None) -> Branch:
        start, end, inner = self.trace.root(stream), self.trace.root(node), None
        returning, flat = self._usable(end)
        if returning and _is_norm(returning[0]):
            inner = self.path(returning[0])
            end = self.trace.root(returning[0].given[0].node)
            returning, flat = self._usable(end)
        if not returning:
            raise Unreadable(
                "what is added to its stream is not what a module returns, but comes out of the operation "
                f"{self.trace.nodes[end].operation!r}"
            )
        shared = self._turns(returning[0]) > 1
        receiving = self._receiving(start, returning[0], {self.shape, self.joined} if flat else {self.shape})
        paths = tuple(self.path(call) for call in returning)
        return Branch(paths, receiving, start, end, norm, inner, shared=shared, flat=flat)

    def _returning(self, root: int) -> list[Call]:
        return [call for call in self.trace.outputs.get(root, []) if self.call.holds(call)]

    def _usable(self, root: int) -> tuple[list[Call], bool]:
        """Modules that return these numbers as one tensor of the stream's shape, the last innermost first.

        Those that run once, else those that serve several branches in turn, else (True) those that join rows and
        tokens.
        """
        calls = self._returning(root)
        whole = [call for call in calls if self.trace.nodes[call.made or 0].shape == self.shape]
        once = [call for call in whole if self._turns(call) == 1]
        joined = [c for c in calls if self.trace.nodes[c.made or 0].shape == self.joined and self._turns(c) == 1]
        usable = once or whole or joined
        inner = [call for call in usable if not any(call.holds(other) for other in usable)]
        return [*reversed(inner), *(call for call in usable if call not in inner)], not whole

    def _receiving(self, root: int, until: Call, shapes: set[tuple[int, ...]]) -> tuple[tuple[str, Argument], ...]:
        """Modules that receive these numbers before a call, and have no other turn of that call's module after them."""
        turns = [call.entered for call in self.inside if call.module is until.module and call is not until]
        found = [
            (self.path(call), given.argument)
            for call in sorted(self.inside, key=lambda call: call.entered)
            if call.entered < until.left
            and self._turns(call) == 1
            and not any(call.entered <= turn < until.entered for turn in turns)
            for given in call.given
            if self.trace.root(given.node) == root and self.trace.nodes[given.node].shape in shapes
        ]
        if not found and self.entry is not None and root == self.trace.root(self.entry):
            return (("", self.argument),)
        return tuple(found)

    def _turns(self, call: Call) -> int:
        return sum(other.module is call.module for other in self.inside)

    def path(self, call: Call) -> str:
        """Where a call's module is inside the layer."""
        return call.path.removeprefix(self.call.path).removeprefix(".")


def _is_norm(call: Call) -> bool:
    """Whether a call forgot the size of its input: f(1000 x) = f(10000 x), and not because it is constant."""
    if call.arguments != 1 or len(call.given) != 1 or call.made is None:
        return False
    if not call.given[0].tensor.is_floating_point():
        return False
    if any(parameter.dim() > 1 for parameter in call.module.parameters()):
        return False
    given = call.given[0].tensor.detach()
    forward: nn.Module = call.module
    with torch.no_grad():
        once, again, other = (forward.forward(x) for x in (1e3 * given, 1e4 * given, 1e3 * given.flip(-1)))
    if not isinstance(once, torch.Tensor) or once.shape != given.shape:
        return False
    size = once.abs().max()
    return bool((once - again).abs().max() <= 1e-2 * size and (once - other).abs().max() > 1e-2 * size)
