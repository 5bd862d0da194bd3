"""The shortest wide bottleneck: one read, one activation, one write, without registers and sums.

What a single adapter becomes, and an average of adapters that read the same thing and share their activation. It exists
because at a few tokens a site costs what its dispatches cost, not what its multiplications do. A single adapter that is
not scaled runs on its own parameters: nothing is copied, a write to them is seen at once, and the answer is that of the
reference to the last bit.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

from torch import Tensor, nn
from torch.nn import functional

from graftwork.compose.run import AFTER, OUTPUT, RESIDUAL, Terms, check_norm
from graftwork.compose.wide import Activate, Down, Norm, Up, Wide
from graftwork.core.bottleneck import Bottleneck
from graftwork.core.site import Delta, Reading

_Read: TypeAlias = Callable[[Reading, Delta], Tensor]
_FIRST_NORM = AFTER + 1  # the source that a norm makes when it is the first step
_STREAM: Terms = ((OUTPUT, 1.0), (RESIDUAL, 1.0))


@dataclass(frozen=True, slots=True, eq=False)
class Plain:
    """A folded composition of one step at one site: a node, called like an adapter.

    own: whether its weights are an adapter's own parameters; else it is a snapshot, as `Wide` is.
    """

    read: _Read
    down: tuple[Tensor, Tensor]  # (M, D) and (M,)
    activation: Callable[[Tensor], Tensor]
    up: tuple[Tensor, Tensor]  # (D, M) and (D,)
    after: bool  # whether the change is written after the norm
    normed: bool
    own: bool = False

    def __call__(self, reading: Reading, delta: Delta) -> Delta:
        """What the composition changes, (B, T, D), given what was changed before. RoutingError as `Wide`."""
        check_norm(reading, self.normed)
        (down, start), (up, constant) = self.down, self.up
        x, out = self.read(reading, delta), reading.like.dtype
        z = self.activation(functional.linear(x if x.dtype is down.dtype else x.to(down.dtype), down, start))
        change = functional.linear(z, up, constant)
        change = change if change.dtype is out else change.to(out)
        return Delta(after=change) if self.after else Delta(before=change)

    @property
    def weights(self) -> tuple[Tensor, ...]:
        """Everything that it multiplies and adds."""
        return *self.down, *self.up


def owned(plain: Plain, adapter: Bottleneck) -> Plain:
    """The same on the parameters of the one adapter that it was made of, where they are what it holds."""
    down, up = adapter.down, adapter.up
    learned = any(True for _ in adapter.activation.parameters())  # what it holds of these is a snapshot
    if adapter.scale is not None or adapter.config.scaling != 1 or learned:
        return plain
    if not isinstance(down, nn.Linear) or not isinstance(up, nn.Linear) or not adapter.config.bias:
        return plain
    return replace(plain, down=(down.weight, down.bias), up=(up.weight, up.bias), own=True)


def shortest(wide: Wide) -> Wide | Plain:
    """The same as a Plain, where it is one."""
    first, rest = wide.steps[0], wide.steps
    if isinstance(first, Norm) and first.base == _STREAM and not first.written:
        rest = wide.steps[1:]
    if len(rest) != 2 or (wide.before is None) is (wide.after is None):
        return wide
    (down, activate), up = rest, wide.before or wide.after
    if not isinstance(down, Down) or not isinstance(activate, Activate) or not isinstance(up, Up):
        return wide
    read = _reader(down.terms, wide.normed)
    spans = (activate.span, *up.features)
    if read is None or up.carry is not None or up.terms or up.bias is None or len(spans) != 2:
        return wide
    if activate.span != (0, 0, len(down.bias)):  # columns that nothing activates
        return wide
    # transposed views: weights stay (in, out), and linear flattens rows and tokens itself
    inner, outer = (down.weight.T, down.bias), (up.weight.T, up.bias)
    return Plain(read, inner, activate.function, outer, wide.before is None, wide.normed)


def _reader(terms: Terms, normed: bool) -> _Read | None:
    if terms == ((OUTPUT, 1.0),):
        return reads_output
    if terms == ((RESIDUAL, 1.0),):
        return reads_residual
    stream = ((AFTER, 1.0), (_FIRST_NORM, 1.0)) if normed else (*_STREAM, (AFTER, 1.0))
    return reads_stream if terms == stream else None


def reads_output(reading: Reading, delta: Delta) -> Tensor:
    """h₀ + Δ, (B, T, D)."""
    return reading.hidden(delta)


def reads_stream(reading: Reading, delta: Delta) -> Tensor:
    """What the norm gives, (B, T, D)."""
    return reading.stream(delta)


def reads_residual(reading: Reading, delta: Delta) -> Tensor:
    """r, (B, T, D)."""
    return reading.residual
