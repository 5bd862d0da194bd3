"""The rows of a mixed batch that run in banks: which slot each of them has at each level, and what comes of it.

    level    the members of the Stack at the top of a row, one after another; a row with fewer has nothing at the later
    pass     one level in one bank: its rows, or with a Split its tokens, all at once, each by the weights in its slot

Passes of a level have different rows, so their order does not matter; each level reads what the earlier ones changed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from graftwork.compose.bank import Bank, Lease
from graftwork.compose.bank_slots import Routing, Traced
from graftwork.compose.banks import Banks, Seated
from graftwork.compose.direct import in_turn
from graftwork.compose.lower import Lane, runs_of
from graftwork.core.site import NO_DELTA, Delta, Direct, Reading, narrow


@dataclass(frozen=True, eq=False)
class Pass:
    """One level in one bank. rows: those that take part, (n,), or None for all. tokens: T where items are tokens.

    leases: keep the slots as they are while this is held. dense: the slots of all rows or tokens, (B,) or (B·T,), which
    a compiled graph takes as data.
    """

    bank: Bank
    rows: Tensor | None
    routing: Routing
    tokens: int | None
    leases: tuple[Lease, ...]
    dense: Tensor
    _placed: dict[object, Tensor] = field(default_factory=dict, repr=False)
    _repeated: dict[int, Routing] = field(default_factory=dict, repr=False)

    def delta(self, site: int, reading: Reading, before: Delta, copies: int) -> Delta:
        """What all rows changed so far, and on top of it what the rows of this pass change, (B, T, D)."""
        slab = self.bank.slabs[site]
        if slab is None:
            return before
        if torch.compiler.is_compiling():
            return before.plus(slab(reading, before, self._traced(copies)))
        if self.rows is None:
            return before.plus(slab(reading, before, self._items(copies)))
        rows = self._rows_on(reading.like.device, copies)
        own = Delta(*(None if part is None else narrow(part, rows, None) for part in (before.before, before.after)))
        change = slab(reading.narrow(rows, None), own, self._items(copies))
        return Delta(
            _added(before.before, change.before, rows, reading.like),
            _added(before.after, change.after, rows, reading.like),
        )

    def _traced(self, copies: int) -> Traced:
        """The slot of every row, or token of the batch, 0 for those that take no part."""
        if copies == 1:
            return Traced(self.dense)
        tokens = self.tokens or 1
        return Traced(self.dense.view(-1, 1, tokens).expand(-1, copies, tokens).reshape(-1))

    def _rows_on(self, device: torch.device, copies: int) -> Tensor:
        key = device, copies
        if key not in self._placed:
            assert self.rows is not None
            offsets = torch.arange(copies)
            self._placed[key] = (self.rows.unsqueeze(1) * copies + offsets).flatten().to(device)
        return self._placed[key]

    def _items(self, copies: int) -> Routing:
        """The items where each row is repeated in place; repeated rows are one longer item, repeated tokens are not."""
        if self.tokens is None or copies == 1:
            return self.routing
        if copies not in self._repeated:
            slots, size = self.routing.slots, self.tokens
            rows = [slots[start : start + size] * copies for start in range(0, len(slots), size)]
            self._repeated[copies] = Routing(tuple(slot for row in rows for slot in row))
        return self._repeated[copies]


def _added(whole: Tensor | None, part: Tensor | None, rows: Tensor, like: Tensor) -> Tensor | None:
    if part is None:
        return whole
    whole = torch.zeros_like(like) if whole is None else whole
    return whole.index_add(0, rows, part.to(whole.dtype))  # what some layers compute in is wider than their output


@dataclass(frozen=True, eq=False)
class Banked:
    """The passes of a batch in the order of their levels, and the sites where nothing runs."""

    passes: tuple[Pass, ...]
    skipped: frozenset[int] = frozenset()

    @property
    def tokens(self) -> set[int]:
        """How many tokens its Splits cover."""
        return {one.tokens for one in self.passes if one.tokens is not None}

    def runs_at(self, site: int) -> bool:
        """Whether something may change at a site."""
        return site not in self.skipped and any(one.bank.slabs[site] is not None for one in self.passes)

    def direct(self, batch: int) -> dict[int, Direct]:
        """Site -> the shorter way through it, where each pass has all rows; `batch` of them."""
        found: dict[int, Direct] = {}
        if any(one.rows is not None or one.tokens is not None for one in self.passes):
            return found
        for site in range(len(self.passes[0].bank.slabs)):
            slabs = [(one.bank.slabs[site], one.routing) for one in self.passes if one.bank.slabs[site] is not None]
            ways = [slab.direct(routing, batch) for slab, routing in slabs if slab is not None]
            whole = [way for way in ways if way is not None]
            if ways and len(whole) == len(ways) and site not in self.skipped:
                found[site] = in_turn(whole)
        return found

    def delta(self, site: int, reading: Reading, copies: int) -> Delta:
        """The change at a site, (B, T, D); each row is repeated `copies` times in place."""
        total = NO_DELTA
        for one in self.passes:
            total = one.delta(site, reading, total, copies)
        return total


@dataclass(frozen=True)
class Seating:
    """What became of the lanes of a batch: those in banks, the numbers of the others, and what was seated."""

    banked: Banked | None
    others: tuple[int, ...]
    seats: tuple[Seated, ...]


_Levels = tuple[Seated, ...]
_Runs = list[tuple[int | None, _Levels]]  # (tokens, what runs on them); None: all


def seat(lanes: Sequence[Lane], banks: Banks, skipped: frozenset[int]) -> Seating:
    """Give the lanes of a batch that can have one a slot at each of their levels. skipped: sites where nothing runs."""
    placed: dict[int, _Runs] = {}
    known: dict[object, _Runs | None] = {}
    for number, (_, tree) in enumerate(lanes):
        if tree not in known:
            known[tree] = _seated(tree, banks)
        runs = known[tree]
        if runs is not None:
            placed[number] = runs
    seats = {id(one): one for runs in known.values() for _, levels in runs or () for one in levels}
    passes = _passes(placed, len(lanes), banks.banks)
    others = tuple(number for number in range(len(lanes)) if number not in placed)
    return Seating(Banked(passes, skipped) if passes else None, others, tuple(seats.values()))


def _seated(tree: object, banks: Banks) -> _Runs | None:
    runs: _Runs = []
    for length, part in runs_of(tree):  # type: ignore[arg-type]
        levels = banks.levels(part)
        if levels is None or (length is not None and any(one.lease.bank.gated for one in levels)):
            return None  # a gate is one number for all the tokens of a run
        runs.append((length, levels))
    return runs


def _passes(placed: Mapping[int, _Runs], lanes: int, banks: Sequence[Bank]) -> tuple[Pass, ...]:
    made: list[Pass] = []
    depth = max((len(levels) for runs in placed.values() for _, levels in runs), default=0)
    for level in range(depth):
        whole: dict[Bank, dict[int, Lease]] = {}
        split: dict[Bank, dict[int, list[Lease | None]]] = {}
        for lane, runs in placed.items():
            found = [(length, levels[level].lease if level < len(levels) else None) for length, levels in runs]
            for bank in dict.fromkeys(lease.bank for _, lease in found if lease is not None):
                own = [(length, lease if lease is not None and lease.bank is bank else None) for length, lease in found]
                if own[0][0] is None:
                    whole.setdefault(bank, {})[lane] = own[0][1]  # type: ignore[assignment]
                else:
                    tokens = [lease for length, lease in own for _ in range(length or 0)]
                    split.setdefault(bank, {})[lane] = tokens
        # in the order of the banks, whatever that of the rows is: one program for all of them
        made += [_of_rows(bank, whole[bank], lanes) for bank in banks if bank in whole]
        made += [_of_tokens(bank, split[bank], lanes) for bank in banks if bank in split]
    return tuple(made)


def _of_rows(bank: Bank, leases: Mapping[int, Lease], lanes: int) -> Pass:
    order = list(leases)
    if len(order) < lanes:  # they are picked anyhow, so in the order of their slots
        order.sort(key=lambda lane: leases[lane].slot)
    routing = Routing(tuple(leases[lane].slot for lane in order))
    rows = None if len(order) == lanes else torch.tensor(order)
    return Pass(bank, rows, routing, None, tuple(dict.fromkeys(leases.values())), _dense(bank, order, routing, lanes))


def _of_tokens(bank: Bank, leases: Mapping[int, Sequence[Lease | None]], lanes: int) -> Pass:
    slots = tuple(0 if lease is None else lease.slot for own in leases.values() for lease in own)
    rows = None if len(leases) == lanes else torch.tensor(list(leases))
    held = tuple(dict.fromkeys(lease for own in leases.values() for lease in own if lease is not None))
    routing, tokens = Routing(slots), len(next(iter(leases.values())))
    return Pass(bank, rows, routing, tokens, held, _dense(bank, list(leases), routing, lanes))


def _dense(bank: Bank, rows: list[int], routing: Routing, lanes: int) -> Tensor:
    whole = torch.zeros(lanes, len(routing.slots) // len(rows), dtype=torch.long)
    whole[torch.tensor(rows)] = torch.tensor(routing.slots).view(len(rows), -1)
    return whole.flatten().to(bank.device)
