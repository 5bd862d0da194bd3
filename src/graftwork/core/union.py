"""A union `a|b`: several methods under one name, as MAM (He et al. 2022) and UniPELT (Mao et al. 2022) are.

At a site where several members have modules, each reads what was there before, and their changes add:

    Δ = Σ mᵢ(read(Δ₀))            and where a member edits the block's output (ReFT), it reads Δ₀ + the others' sum

What is put in front of an attention or a text does not add, and a sum of invertible maps has no known inverse: two
members at one such site are refused. A fusion over unions attends to the sum of what the members say, and settles it as
the last of them would. Parameters are `<index>.<parameter>`. Knows no method but by its `build`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import or_
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from graftwork.core.adapter import NO_GROUND, Adapter, Ground, Invertible, MethodConfig, Prefix, Prompt, uses_of
from graftwork.core.merge import merged
from graftwork.core.options import settle_places
from graftwork.core.site import Delta, Positions, Reading, Site, Uses
from graftwork.errors import AdapterError

_ALONE = {
    "kv": "prefixes do not add; put them in adapters of their own and Stack those",
    "prompt": "prompts do not add; put them in adapters of their own and Stack those",
    "embed": "a sum of maps, one of them invertible, has no known inverse",
}


@dataclass(frozen=True, kw_only=True)
class UnionConfig:
    """The methods of a union, at least two. Raises AdapterError for anything that is not a configuration."""

    members: tuple[MethodConfig, ...]

    kind: ClassVar[str] = "union"
    where: ClassVar[str] = "where its members go"

    def __post_init__(self) -> None:
        settle_places(self)
        if not isinstance(self.members, tuple) or len(self.members) < 2:
            raise AdapterError(f"union adapter: members {self.members!r} must be at least two configurations")
        wrong = [member for member in self.members if not callable(getattr(member, "build", None))]
        if wrong:
            raise AdapterError(f"union adapter: {wrong[0]!r} is not a configuration; a member is one, or its string")

    @property
    def leave_out(self) -> tuple[int, ...]:
        """Layers that every member leaves out."""
        common = set.intersection(*(set(member.leave_out) for member in self.members))
        return tuple(sorted(common))

    def adapts(self, site: Site) -> bool:
        """Whether any member means a site."""
        return any(member.adapts(site) for member in self.members)

    def share(self, sites: Sequence[Site]) -> nn.Module | None:
        """What each member shares over its sites, by its index. Raises AdapterError for a member without a place."""
        for index, member in enumerate(self.members):
            if not any(member.adapts(site) for site in sites):
                kinds = ", ".join(dict.fromkeys(site.kind for site in sites))
                raise AdapterError(
                    f"union adapter: member {index} ({member.kind}) has no place on this model: it goes to "
                    f"{member.where}, and the model has {kinds}; leave it out of the union"
                )
        made = {str(index): member.share(sites) for index, member in enumerate(self.members)}
        own = {index: module for index, module in made.items() if module is not None}
        return nn.ModuleDict(own) if own else None

    def build(self, site: Site, ground: Ground = NO_GROUND) -> nn.Module | None:
        """The members' modules at a site as one, or None where none has any. Raises AdapterError for two of a kind
        that goes alone."""
        made: dict[str, nn.Module] = {}
        for index, member in enumerate(self.members):
            module = member.build(site, replace(ground, shared=_own(ground.shared, str(index))))
            if module is not None:
                made[str(index)] = module
        invertible = any(isinstance(module, Invertible) for module in made.values())
        if len(made) > 1 and site.place in _ALONE and (invertible or site.place != "embed"):
            both = " and ".join(made)
            raise AdapterError(f"union adapter: members {both} both go to {site.name}: {_ALONE[site.place]}")
        if not made:
            return None
        return (UnionInvertible if invertible else _UNIONS.get(site.place, Union))(made)


def _own(shared: nn.Module | None, index: str) -> nn.Module | None:
    return shared[index] if isinstance(shared, nn.ModuleDict) and index in shared else None


class Union(nn.Module):
    """The modules of several methods at one site, as one adapter."""

    def __init__(self, members: Mapping[str, nn.Module]) -> None:
        super().__init__()
        for index, module in members.items():
            self.add_module(index, module)
        self._order = sorted(members, key=lambda index: getattr(members[index], "edits_block", False))

    @property
    def members(self) -> tuple[Adapter, ...]:
        """In the order of the union, those last that edit the block's output."""
        return tuple(cast(Adapter, self._modules[index]) for index in self._order)

    @property
    def uses(self) -> Uses:
        """What any member uses of a sub-layer."""
        return reduce(or_, map(uses_of, self.members))

    def read(self, reading: Reading, delta: Delta, *, before_norm: bool = False) -> Tensor:
        """What the last member sees, (B, T, D)."""
        return self.members[-1].read(reading, delta, before_norm=before_norm)

    def change(self, reading: Reading, delta: Delta) -> Tensor:
        """The sum of what the members say, (B, T, D)."""
        (first, *others), _ = self._ask(reading, delta)
        return sum(others, first)

    def carried(self, reading: Reading, delta: Delta) -> Tensor:
        """What the last member's change is added to, (B, T, D)."""
        return self.members[-1].carried(reading, delta)

    def settle(self, reading: Reading, delta: Delta, change: Tensor) -> Delta:
        """A change of the stream as the last member would make it."""
        return self.members[-1].settle(reading, delta, change)

    def forward(self, reading: Reading, delta: Delta) -> Delta:
        """The sum of what the members change, each given what others changed before: (B, T, D) -> (B, T, D)."""
        return self._ask(reading, delta)[1]

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The linear with the members' changes of weight (D, inputs) and bias (D,) added. Raises AdapterError."""
        made = [merged(cast(nn.Module, member), weight, bias) for member in self.members]
        total = weight + sum((own for own, _ in made), torch.zeros_like(weight)) - len(made) * weight
        shifts = [own - bias for _, own in made if own is not None and bias is not None]
        return total, None if bias is None else sum(shifts, bias)

    def _ask(self, reading: Reading, delta: Delta) -> tuple[list[Tensor], Delta]:
        """What each member says, and the sum of their changes."""
        said, total = [], Delta()
        for member in self.members:
            before = delta.plus(total) if getattr(member, "edits_block", False) else delta
            said.append(member.change(reading, before))
            total = total.plus(member.settle(reading, before, said[-1]))
        return said, total


class UnionPrefix(Union):
    """The one prefix that a union has at a kv site."""

    def positions(self, reading: Reading) -> Positions:
        """Keys and values to put in front, (B, H, P, W) each."""
        return cast(Prefix, next(self.children())).positions(reading)


class UnionPrompt(Union):
    """The one prompt that a union has."""

    @property
    def length(self) -> int:
        """P, how many tokens it puts in front."""
        return cast(Prompt, next(self.children())).length

    def put(self, embeddings: Tensor) -> Tensor:
        """Embeddings with the prompt among them, (B, T, D) -> (B, P + T, D)."""
        return cast(Prompt, next(self.children())).put(embeddings)

    def lengthened(self, row: Tensor, fill: int) -> Tensor:
        """A mask or labels (B, T) for the longer rows, (B, P + T), with `fill` where the prompt is."""
        return cast(Prompt, next(self.children())).lengthened(row, fill)


class UnionInvertible(Union):
    """The one invertible adapter that a union has."""

    @property
    def undone_at_head(self) -> bool:
        """Whether a language-modelling head undoes it."""
        return cast(Invertible, next(self.children())).undone_at_head

    def inverse(self, hidden: Tensor) -> Tensor:
        """The exact inverse of the change, (B, T, D) -> (B, T, D)."""
        return cast(Invertible, next(self.children())).inverse(hidden)


_UNIONS: dict[str, type[Union]] = {"kv": UnionPrefix, "prompt": UnionPrompt}
