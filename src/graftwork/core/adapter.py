"""What every method is made of: a module per site that turns what it reads into a change, and what builds it.

    A(reading, Δ) = settle(change(reading, Δ))

`change` is what the module says, `settle` turns that into a change of the stream; the two differ only for modules whose
flags move the stream to where they write. A fusion attends to what its members *say*, compares it with what the last of
them reads, and settles the result as the last one would.

Two kinds of module are outside this arithmetic, because they lengthen something instead of changing it: prefixes (keys
and values of an attention) and prompts (embeddings). What they compose with is said in their files.

Knows no method, no names, no compositions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

from torch import Tensor, nn

from graftwork.core.site import EVERYTHING, Delta, Positions, Reading, Site, Uses


@dataclass(frozen=True)
class Ground:
    """What a module may stand on besides its site: `weight` of the frozen linear there, (width, inputs), and whether it
    is `biased`; `shared`, what its configuration made once for all sites of one adapter; `norm`, the frozen norm after
    the residual add of a sub-layer (post-LN), at an embed site that of the embeddings."""

    weight: Callable[[], Tensor] | None = None
    shared: nn.Module | None = None
    norm: nn.Module | None = None
    biased: bool = True


NO_GROUND = Ground()


class MethodConfig(Protocol):
    """A frozen dataclass: every choice of a method, under the names people know.

    stacks: the towers or stacks it goes to ("encoder", "vision"); empty for all. leave_out: layers without an adapter.
    """

    kind: ClassVar[str]
    where: ClassVar[str]  # the places it can go to, for people

    @property
    def leave_out(self) -> tuple[int, ...]:
        """Layers (depths) without an adapter."""
        ...

    def adapts(self, site: Site) -> bool:
        """Whether this configuration means a site."""
        ...

    def share(self, sites: Sequence[Site]) -> nn.Module | None:
        """What the modules of one adapter have in common, made once for the sites it goes to, or None."""
        ...

    def build(self, site: Site, ground: Ground = NO_GROUND) -> nn.Module | None:
        """The module for a site, freshly initialised in float32, or None where this configuration has none."""
        ...


@runtime_checkable
class Adapter(Protocol):
    """A module at a sublayer, linear, input or embed site. B rows, T tokens, D the width of the site."""

    def read(self, reading: Reading, delta: Delta, *, before_norm: bool = False) -> Tensor:
        """What the module sees, and what a fusion's query reads, (B, T, D); before_norm: h₀ + Δ instead of a stream."""
        ...

    def change(self, reading: Reading, delta: Delta) -> Tensor:
        """u, (B, T, D): what the module says, before it is settled into the stream."""
        ...

    def carried(self, reading: Reading, delta: Delta) -> Tensor:
        """What u is added to, (B, T, D)."""
        ...

    def settle(self, reading: Reading, delta: Delta, change: Tensor) -> Delta:
        """Turn u into a change of the stream."""
        ...

    def __call__(self, reading: Reading, delta: Delta) -> Delta:
        """The module's own change, given what was changed before."""
        ...


@runtime_checkable
class Invertible(Protocol):
    """An adapter at an embed site that can be undone, and is at the vocabulary if `undone_at_head`."""

    @property
    def undone_at_head(self) -> bool:
        """Whether a language-modelling head undoes it."""
        ...

    def inverse(self, hidden: Tensor) -> Tensor:
        """The exact inverse of the change, (B, T, D) -> (B, T, D)."""
        ...


@runtime_checkable
class Prefix(Protocol):
    """A module at a kv site."""

    def positions(self, reading: Reading) -> Positions:
        """Keys and values to put in front, for the B rows of what enters the attention, reading.output (B, T, D)."""
        ...


@runtime_checkable
class Prompt(Protocol):
    """A module at a prompt site."""

    length: int

    def put(self, embeddings: Tensor) -> Tensor:
        """Embeddings with the prompt among them, (B, T, D) -> (B, P + T, D)."""
        ...

    def lengthened(self, row: Tensor, fill: int) -> Tensor:
        """A mask or labels (B, T) for the longer rows, (B, P + T), with `fill` where the prompt is."""
        ...


def uses_of(module: object) -> Uses:
    """What a module uses of a sub-layer: what its `uses` says, everything where it has none."""
    return getattr(module, "uses", EVERYTHING)
