"""Banks: slots hold what was put there, to the bit, through adding, replacing, evicting and growing."""

import gc
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import nn

from graftwork.compose.bank import Bank, Lease
from graftwork.compose.bank_slab import Unbankable, slot_weights, structure, width_class
from graftwork.compose.bank_slots import Routing
from graftwork.compose.plain import Plain
from graftwork.core.site import NO_DELTA, Reading
from graftwork.errors import RoutingError

D = 16


def unit(seed: int, width: int, activation: nn.Module | None = None, after: bool = False) -> Plain:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    inner, outer = (random(width, D), random(width)), (random(D, width), random(D))
    return Plain(Reading.hidden, inner, (activation or nn.ReLU()).forward, outer, after, False)


def reading(rows: int, tokens: int = 3) -> Reading:
    h = torch.randn(rows, tokens, D, generator=torch.Generator().manual_seed(rows))
    return Reading(h, -h, None)


def check(bank: Bank, site: int, held: list[tuple[Lease, Plain | None]]) -> None:
    """Every row of a batch of all units is what the unit alone makes of it."""
    slab = bank.slabs[site]
    if slab is None or not held:
        return
    x = reading(len(held))
    found = slab(x, NO_DELTA, Routing(tuple(lease.slot for lease, _ in held))).before
    assert found is not None
    for row, (_, node) in enumerate(held):
        alone = torch.zeros(1, 3, D)
        if node is not None:
            alone = node(x.narrow(torch.tensor([row]), None), NO_DELTA).before  # type: ignore[assignment]
        torch.testing.assert_close(found[row : row + 1], alone, rtol=1e-4, atol=1e-4)


class Slots(RuleBasedStateMachine):
    """A bank of two sites beside a dictionary of what is in it."""

    @initialize(slots=st.integers(1, 3))
    def begin(self, slots: int) -> None:
        self.bank = Bank(2, slots)
        self.held: dict[str, tuple[Lease, list[Plain | None]]] = {}
        self.gone: list[tuple[int, int]] = []  # slot and generation of leases that are over

    @rule(
        name=st.sampled_from("abcdef"), seed=st.integers(0, 99), width=st.integers(9, 16),
        sites=st.sampled_from([(True, True), (True, False), (False, True)]),
    )  # fmt: skip
    def put(self, name: str, seed: int, width: int, sites: tuple[bool, bool]) -> None:
        nodes = [unit(seed + site, width) if there else None for site, there in enumerate(sites)]
        self.drop(name)
        assert self.bank.fits(nodes, [None if node is None else structure(node) for node in nodes])
        self.held[name] = self.bank.put(name, nodes), nodes

    @precondition(lambda self: self.held)
    @rule(data=st.data(), early=st.booleans())
    def evict(self, data: Any, early: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.held)))
        if early:
            lease, _ = self.held[name]
            lease.release()
            lease.release()  # once is enough
            with pytest.raises(RoutingError, match=f"slot {lease.number} was leased for {name} in generation"):
                lease.slot  # noqa: B018
        self.drop(name)

    def drop(self, name: str) -> None:
        if name in self.held:
            lease, _ = self.held.pop(name)
            self.gone.append((lease.number, lease.generation))

    @invariant()
    def every_slot_is_its_owner_s(self) -> None:
        if not hasattr(self, "bank"):
            return
        leases = [lease for lease, _ in self.held.values()]
        assert len({lease.slot for lease in leases}) == len(leases) == self.bank.used
        assert 0 not in {lease.slot for lease in leases}
        assert all(self.bank.generations[slot] > generation for slot, generation in self.gone)
        for site in range(2):
            check(self.bank, site, [(lease, nodes[site]) for lease, nodes in self.held.values()])
            if (slab := self.bank.slabs[site]) is not None:
                assert not any(bool(weight[0].any()) for weight in slot_weights(slab.node))


TestSlots = Slots.TestCase
TestSlots.settings = settings(max_examples=30, stateful_step_count=15, deadline=None)


def test_a_slot_that_is_in_use_is_given_to_nobody() -> None:
    bank = Bank(1, 1)
    first = bank.put("a", [unit(1, 8)])
    running = first  # a forward that has begun
    del first
    second = bank.put("b", [unit(2, 8)])
    assert second.slot != running.slot
    check(bank, 0, [(running, unit(1, 8)), (second, unit(2, 8))])
    slot = running.slot
    del running
    gc.collect()
    assert bank.put("c", [unit(3, 8)]).slot == slot


def test_slabs_outlive_the_call_that_needs_them() -> None:
    bank = Bank(1, 1)
    with torch.inference_mode():
        lease = bank.put("a", [unit(1, 8)])
    other = bank.put("b", [unit(2, 8)])  # grows, and writes
    check(bank, 0, [(lease, unit(1, 8)), (other, unit(2, 8))])


@pytest.mark.parametrize(
    ("width", "size"),
    [(1, 8), (8, 8), (9, 16), (24, 32), (48, 48), (49, 64), (96, 96), (128, 128), (129, 192), (256, 256), (257, 384)],
)
def test_width_classes(width: int, size: int) -> None:
    assert width_class(width) == size


def test_units_that_differ_in_more_than_weights_are_apart() -> None:
    bank = Bank(1)
    bank.put("a", [unit(1, 12)])
    for other, fits in [
        (unit(2, 16), True),
        (unit(2, 17), False),
        (unit(2, 12, nn.Tanh()), False),
        (unit(2, 12, after=True), False),
        (unit(2, 12, nn.LeakyReLU(0.2)), False),
    ]:
        assert bank.fits([other], [structure(other)]) is fits
    with pytest.raises(Unbankable, match="its activation PReLU has weights of its own"):
        structure(unit(1, 8, nn.PReLU()))


def test_a_class_is_exact_also_where_the_activation_of_zero_is_not_zero() -> None:
    bank = Bank(1)
    node = unit(4, 11, nn.Sigmoid())
    check(bank, 0, [(bank.put("a", [node]), node)])
