"""Compositions of what lengthens instead of changing: prefixes (keys and values) and prompts (embeddings).

    Stack, Fuse of prefixes   all their positions, one after another: attention itself weighs them
    Stack of prompts          all their tokens, in order
    Average                   has no meaning for either, nor has a Fuse of prompts: refused, with the reason

Routing over rows (BatchSplit, Parallel, a composition a row) reaches both: rows get what is theirs, and what is shorter
is filled up in front with positions that nothing sees. Routing over tokens (Split) does not: both belong to whole rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from graftwork.compose.tree import Average, Composition, Fuse, show
from graftwork.core.adapter import Prefix, Prompt
from graftwork.core.site import Positions, Reading
from graftwork.errors import CompositionError

Rows = Tensor | None


@dataclass(frozen=True, slots=True)
class Prefixes:
    """Several prefixes, one after another."""

    members: Sequence["Prefix | Prefixes"]

    def positions(self, reading: Reading) -> Positions:
        """As `Prefix.positions`."""
        rows = reading.output.shape[0]
        found = [member.positions(reading) for member in self.members]
        keys, values = (
            torch.cat([tensor.expand(rows, -1, -1, -1) for tensor in tensors], dim=2)
            for tensors in ([one.keys for one in found], [one.values for one in found])
        )
        if all(one.real is None for one in found):
            return Positions(keys, values)
        return Positions(keys, values, torch.cat([_real(one, rows) for one in found], dim=1))


@dataclass(frozen=True, slots=True)
class Prompts:
    """Several prompts, the first one outermost."""

    members: Sequence["Prompt | Prompts"]

    @property
    def length(self) -> int:
        """How many tokens they add."""
        return sum(member.length for member in self.members)

    def put(self, embeddings: Tensor) -> Tensor:
        """As `Prompt.put`."""
        for member in reversed(self.members):
            embeddings = member.put(embeddings)
        return embeddings

    def lengthened(self, row: Tensor, fill: int) -> Tensor:
        """As `Prompt.lengthened`."""
        for member in reversed(self.members):
            row = member.lengthened(row, fill)
        return row


def join(tree: Composition, present: Sequence[object]) -> Prefixes | Prompts | None:
    """The composition of members that lengthen, None where they do not. Raises CompositionError."""
    prefixes = [member for member in present if isinstance(member, Prefix | Prefixes)]
    prompts = [member for member in present if isinstance(member, Prompt | Prompts)]
    if not prefixes and not prompts:
        return None
    if isinstance(tree, Average):
        raise CompositionError(
            f"{show(tree)} has no meaning for prefixes and prompts: they add positions, and positions have no mean. "
            "Stack them, or give rows of their own to each"
        )
    if isinstance(tree, Fuse) and prompts:
        raise CompositionError(f"{show(tree)}: a fusion attends to changes, and prompts add tokens; Stack them")
    return Prefixes(prefixes) if prefixes else Prompts(prompts)


def merge_positions(parts: Sequence[tuple[Rows, Positions]], rows: int) -> Positions:
    """The positions of a batch whose rows have different ones: (B, H, P, W) with the longest P; short ones end last."""
    first = parts[0][1].keys
    size = max(part.keys.shape[2] for _, part in parts)
    keys = first.new_zeros(rows, first.shape[1], size, first.shape[3])
    values, real = torch.zeros_like(keys), torch.zeros(rows, size, dtype=torch.bool, device=keys.device)
    for own, part in parts:
        start = size - part.keys.shape[2]
        where: Tensor | slice = slice(None) if own is None else own
        keys[where, :, start:], values[where, :, start:] = part.keys.to(keys), part.values.to(values)
        real[where, start:] = True if part.real is None else part.real
    return Positions(keys, values, real, any(part.counted for _, part in parts))


def merge_rows(parts: Sequence[tuple[Rows, Tensor]], rows: int, others: Tensor, fill: int = 0) -> Tensor:
    """The rows of a batch that have become unequally long, (B, T', …); `others` (B, T, …) are those that nothing names.

    The shorter ones are filled up in front with `fill`.
    """
    size = max(part.shape[1] for _, part in parts)
    whole = others.new_full((rows, size, *others.shape[2:]), fill)
    whole[:, size - others.shape[1] :] = others
    for own, part in parts:
        where: Tensor | slice = slice(None) if own is None else own
        whole[where, : size - part.shape[1]] = fill
        whole[where, size - part.shape[1] :] = part
    return whole


def _real(positions: Positions, rows: int) -> Tensor:
    if positions.real is not None:
        return positions.real.expand(rows, -1)
    return torch.ones(rows, positions.keys.shape[2], dtype=torch.bool, device=positions.keys.device)
