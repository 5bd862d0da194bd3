"""Where the layers are: the outermost lists of modules that feed each other and whose residual stream can be read.

A list counts when every module of it that ran got what the one before it returned. What stands inside a list that was
read is not looked at again; where a list cannot be read, the lists inside it are tried.
"""

from dataclasses import dataclass
from itertools import pairwise

from torch import nn

from graftwork.core.streams import Branch, Layer, Unreadable
from graftwork.core.trace import Call, Trace


@dataclass(frozen=True)
class Candidate:
    """A list of layers whose streams could be read."""

    path: str
    layers: tuple[Layer, ...]
    branches: tuple[tuple[Branch, ...], ...]


def stacks_of(trunk: nn.Module, seen: Trace, rows: int) -> tuple[list[Candidate], dict[str, str]]:
    """The outermost lists of layers that can be read, in the order in which they run, and why others cannot."""
    calls: dict[str, Call] = {}
    for call in seen.calls:
        calls.setdefault(call.path, call)
    found: list[Candidate] = []
    reasons: dict[str, str] = {}
    for path, module in sorted(trunk.named_modules(), key=lambda pair: pair[0].count(".") + bool(pair[0])):
        if any(not one.path or path.startswith(one.path + ".") for one in found):
            continue
        listed = isinstance(module, nn.ModuleList | nn.Sequential | nn.ModuleDict)
        children = [calls.get(f"{path}.{name}".strip(".")) for name, _ in module.named_children()]
        ran = [call for call in children if call is not None]
        if ran and (listed or len(children) > 1) and len(ran) > (0 if listed else 1):
            try:
                found.append(_candidate(path, ran, seen, rows))
            except Unreadable as reason:
                if listed:
                    reasons[path] = str(reason)
    return sorted(found, key=lambda one: one.layers[0].call.entered), reasons


def _candidate(path: str, ran: list[Call], seen: Trace, rows: int) -> Candidate:
    if len({type(call.module) for call in ran}) > 1 and len(ran) == 2:
        raise Unreadable("its two modules are of two classes")
    layers = [Layer(seen, call) for call in ran]
    for before, after in pairwise(layers):
        fed = after.entry is not None and before.call.first is not None
        if not fed or before.call.first not in seen.before(after.entry or 0, stop=[before.call.first or 0]):
            raise Unreadable("its modules do not feed each other one after the other")
    branches = tuple(layer.branches(rows) for layer in layers)
    return Candidate(path, tuple(layers), branches)


def in_order(found: list[Candidate], seen: Trace) -> list[tuple[str, Candidate]]:
    """Stacks with their names, by what they read: one after those whose states it reads, else by name.

    One is called ""; two of which one reads the other's states beside its own input, encoder and decoder; those that
    are made from words and from images, text and vision; else where their paths differ.
    """
    if len(found) == 1:
        return [("", found[0])]
    crossed = [any(layer.reads_outside(one) for layer, all_of in pairs(stack) for one in all_of) for stack in found]
    if crossed == [False, True]:
        return [("encoder", found[0]), ("decoder", found[1])]
    senses = [_sense(one, seen) for one in found]
    names = senses if len(set(senses)) == len(senses) and None not in senses else _by_path([one.path for one in found])
    made = {layer.call.first for layer in found[0].layers}  # a model may take an earlier layer's states
    independent = len(found) == 2 and not made & seen.before(found[1].layers[0].entry or 0)
    named = [(str(name), one) for name, one in zip(names, found, strict=True)]
    return sorted(named, key=lambda pair: pair[0]) if independent else named


def pairs(one: Candidate) -> list[tuple[Layer, tuple[Branch, ...]]]:
    """Every layer of a stack with its branches."""
    return list(zip(one.layers, one.branches, strict=True))


def _sense(one: Candidate, seen: Trace) -> str | None:
    """text for what is made from whole numbers, vision for what is made from images alone."""
    read = seen.before(one.layers[0].entry or 0)
    whole = {given.node for call in seen.calls[-1:] for given in call.given if not given.tensor.is_floating_point()}
    images = {given.node for call in seen.calls[-1:] for given in call.given if given.tensor.dim() >= 4}
    return "text" if read & whole else "vision" if read & images else None


def _by_path(paths: list[str]) -> list[str]:
    steps = [path.split(".") for path in paths]
    for length in range(1, max(len(one) for one in steps) + 1):
        names = ["_".join(one[:length]) for one in steps]
        if len(set(names)) == len(names):
            return names
    return [path.replace(".", "_") for path in paths]
