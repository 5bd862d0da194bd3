"""Whether weights are still what they were when something was derived from them.

Three things tell, for each parameter: it is still held where it was, nothing was written to it (torch counts that), and
its numbers still lie where they lay (`.to` and `.data =` put others into the same parameter and count nothing). Of what
may be trained a copy tells too: fused optimisers, transformers' default, write without being counted. They are asked
before every call, so they are asked in flat loops inside the interpreter, and once for each parameter of a composition,
however many sites share it.
"""

from collections.abc import Iterable, Iterator
from operator import attrgetter, is_
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from graftwork.core.bottleneck import Tied
from graftwork.core.phm import PHM

_VERSION, _TRAINS = attrgetter("_version"), attrgetter("requires_grad")


class _Seen(NamedTuple):
    """A parameter or a submodule, and what it was. alias: keeps its numbers where they are, so that no other ones can
    come to lie there; copy: of the numbers of one that may be trained. None where only what it is matters: submodules,
    and parameters that are used as they are."""

    held: dict[str, Any]
    name: str
    it: Any
    version: int | None
    alias: Tensor | None
    copy: Tensor | None = None

    @property
    def key(self) -> tuple[int, str, int, int | None, int | None]:
        """What tells it apart from others, and from itself at another time."""
        address = None if self.alias is None else self.alias.data_ptr()
        return id(self.held), self.name, id(self.it), self.version, address


class Watch:
    """The parameters and submodules of some modules, and what they were."""

    def __init__(self, seen: Iterable[_Seen] = ()) -> None:
        self._seen = tuple({one.key: one for one in seen}.values())
        self._held = [one.held for one in self._seen]
        self._names = [one.name for one in self._seen]
        self._its = [one.it for one in self._seen]
        self._counted = [one.it for one in self._seen if one.version is not None]
        self._versions = [one.version for one in self._seen if one.version is not None]
        self._tensors = [one.it for one in self._seen if one.alias is not None]
        self._addresses = [one.alias.data_ptr() for one in self._seen if one.alias is not None]
        self._copies = [(one.it, one.copy) for one in self._seen if one.copy is not None]
        self._trained = [one.copy is not None for one in self._seen if one.alias is not None]

    @classmethod
    def of(cls, modules: Iterable[nn.Module], used: bool = False) -> "Watch":
        """What modules hold now, with what they share with the other sites of their adapters.

        used: their parameters themselves are used, so that only another one in their place would not be seen.
        """
        seen = (one for module in modules for one in _seen(module))
        if used:
            return cls(one._replace(version=None, alias=None) for one in seen)
        return cls(map(_copied, seen))

    @classmethod
    def joined(cls, watches: Iterable["Watch"]) -> "Watch":
        """One that is stale when any of these is."""
        return cls(one for watch in watches for one in watch._seen)

    @property
    def stale(self) -> bool:
        """Whether something was replaced, moved or written to since. Writes through `.data`, or to tensors made in
        inference mode, are not seen."""
        return (
            not all(map(is_, map(dict.get, self._held, self._names), self._its))
            or list(map(_VERSION, self._counted)) != self._versions
            or list(map(Tensor.data_ptr, self._tensors)) != self._addresses
            or list(map(_TRAINS, self._tensors)) != self._trained
            or not all(torch.equal(one, copy) for one, copy in self._copies)
        )


def _copied(one: _Seen) -> _Seen:
    return one if one.alias is None or not one.it.requires_grad else one._replace(copy=one.alias.clone())


def parameters(member: nn.Module) -> Iterator[nn.Parameter]:
    """A member's own parameters and those that it shares with the other sites of its adapter."""
    return (one.it for one in _seen(member) if one.alias is not None)


def _seen(member: nn.Module) -> Iterator[_Seen]:
    shared: dict[int, nn.Module] = {}
    for layer in member.modules():
        if isinstance(layer, PHM) and layer.shared:
            shared[id(layer.shared)] = layer.shared
        elif isinstance(layer, Tied):
            shared[id(layer.owner)] = layer.owner
    for owner in (member, *shared.values()):
        for module in owner.modules():
            for name, inner in module._modules.items():
                yield _Seen(module._modules, name, inner, None, None)
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    version = None if parameter.is_inference() else parameter._version
                    yield _Seen(module._parameters, name, parameter, version, parameter.detach())
