"""Where AdapterHub keeps things: from the module paths that its state dicts are named by to our sites, and back.

A layout says how the list of layers is reached, and which module inside a layer stands for which of our sites. A file
saved from a class with a head has the class's prefix before every path, one saved from the bare model has none; both
are read. The table of layouts is `layouts.py`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from graftwork.errors import PackageError

LAYER = ""  # the layer itself: where ReFT sits
_NUMBER = r"(\d+)"


@dataclass(frozen=True)
class Stack:
    """One list of layers: `layers` with # for a number; `sites`: path inside a layer -> our kind of site."""

    name: str
    layers: str
    sites: Mapping[str, str]
    prefixes: Mapping[str, str] = field(default_factory=lambda: {"self_prefix": "attn"})  # location -> attention


@dataclass(frozen=True)
class Layout:
    """The model types that share their paths. prefix: of a class with a head. embed: where invertible adapters are.

    merged: kind of a linear that makes several outputs -> the kinds they are, in order. swapped: "intermediate" of the
    configuration is the second linear of the feed-forward, "output" the first (Llama, Mistral).
    """

    model_types: tuple[str, ...]
    prefix: str
    stacks: tuple[Stack, ...]
    embed: str = ""
    merged: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    swapped: bool = False
    by_heads: bool = False  # a merged linear's outputs lie head by head (DeBERTa)

    def site(self, place: str) -> str | None:
        """Our name of the site that a module path stands for, or None."""
        for stack in self.stacks:
            found = _match(self.prefix, stack.layers, place)
            if found is None:
                continue
            numbers, inside = found
            kind = stack.sites.get(inside)
            if kind is not None:
                return site_name(stack.name, _number(numbers), kind)
        return None

    def paths(self, site: str, *, layer: bool = False) -> list[str]:
        """The module paths that stand for a site of ours, without prefix; several where models of a type differ.

        layer: the path of its layer, where ReFT sits.
        """
        stack_name, _, place = site.rpartition("layer.")
        number, _, kind = place.partition("/")
        return [
            f"{stack.layers.replace('#', number, 1).replace('#', '0')}{'.' if inside else ''}{inside}"
            for stack in self.stacks
            if stack.name == stack_name.rstrip(".") and number.isdecimal()
            for inside, own in stack.sites.items()
            if own == kind and (inside == LAYER) == layer
        ]

    def is_embed(self, place: str) -> bool:
        """Whether a module path is where invertible adapters are kept."""
        return self.is_root(place) or bare(self.prefix, place) == self.embed

    def is_root(self, place: str) -> bool:
        """Whether a module path is the model itself."""
        return bare(self.prefix, place) in ("", self.prefix)

    @property
    def embed_site(self) -> str:
        """Our name of the site of invertible adapters and prompts' embeddings."""
        return site_name(self._first.name, -1, "embed")

    @property
    def prompt_site(self) -> str:
        """Our name of the site of a prompt."""
        return site_name(self._first.name, -1, "prompt")

    @property
    def _first(self) -> Stack:
        return self.stacks[0]


def site_name(stack: str, layer: int, kind: str) -> str:
    """layer.3/ffn, encoder.layer.0/attn, embed, encoder.embed."""
    place = kind if layer < 0 else f"layer.{layer}/{kind}"
    return f"{stack}.{place}" if stack else place


def bare(prefix: str, place: str) -> str:
    return place.removeprefix(prefix + ".") if prefix else place


def _match(prefix: str, layers: str, place: str) -> tuple[tuple[int, ...], str] | None:
    pattern = re.escape(layers).replace(r"\#", _NUMBER)
    for start in (f"{re.escape(prefix)}\\." if prefix else "", ""):
        match = re.fullmatch(rf"{start}{pattern}(?:\.(.+))?", place)
        if match:
            *numbers, inside = match.groups()
            return tuple(map(int, numbers)), inside or LAYER
    return None


def _number(numbers: tuple[int, ...]) -> int:
    # ALBERT counts groups of layers; more than one layer in a group was never released
    if len(numbers) == 2 and numbers[1]:
        raise PackageError(f"a group with {numbers[1] + 1} ALBERT layers: only groups of one layer are read")
    return numbers[0]
