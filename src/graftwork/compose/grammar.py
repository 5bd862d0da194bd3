"""The written form of a composition: `Stack(hi, Fuse(a, b, name=ab))` to and from the blocks of `tree.py`.

    composition := NAME | "none" | BLOCK "(" member ("," member)* ["," option] ")"
    option      := "name" "=" NAME | "order" "=" "any"             of a Fuse, of a Stack
    member      := composition [":" NUMBER]

`parse(tree.show(c)) == c` for every composition c.
"""

import re
from functools import lru_cache
from typing import NoReturn

from graftwork.compose.tree import BLOCKS, DEEPEST, NAME, NONE, Block, Composition, Fuse, Stack
from graftwork.errors import CompositionError

NUMBERS = {"Average": "weights", "Split": "splits", "BatchSplit": "batch_sizes"}  # block -> keyword of its numbers
OPTIONS = {"Fuse": "name", "Stack": "order"}  # block -> what it may say of itself after its members


def as_composition(value: object) -> Composition:
    """Read a composition as people write one: a block, a name, an expression, None, or a list (which is a Stack).

    Raises CompositionError for anything else.
    """
    if value is None or isinstance(value, Block):
        return value  # type: ignore[return-value]
    if isinstance(value, str):
        return parse(value)
    if isinstance(value, list | tuple) and value:
        return as_composition(value[0]) if len(value) == 1 else Stack(*map(as_composition, value))
    raise CompositionError(
        f"{value!r} is not a composition: give a name, an expression such as 'Stack(a, b)', or a block"
    )


def as_fuse(value: object, name: str | None = None) -> Fuse:
    """A fusion as people write one: a Fuse, a list of names, or "a,b,c". Raises CompositionError for anything else."""
    if isinstance(value, str) and "(" not in value:
        value = Fuse(*(part.strip() for part in value.split(",")), name=name)
    elif isinstance(value, list | tuple):
        value = Fuse(*map(as_composition, value), name=name)
    tree = as_composition(value)
    if not isinstance(tree, Fuse):
        raise CompositionError(f"{value!r} is not a fusion: give Fuse(a, b), a list of names, or 'a,b'")
    return Fuse(*tree.children, name=name) if name else tree


@lru_cache(maxsize=4096)
def parse(text: str) -> Composition:
    """Read an expression such as `Stack(hi, Fuse(a, b, name=ab))`. Raises CompositionError with the position."""
    from_here = _Reader(text)
    tree = from_here.composition()
    from_here.end()
    return tree


_TOKEN = re.compile(r"\s*([(),:=]|[^\s(),:=]+)")


class _Reader:
    """A reader of one expression, token by token (recursive descent)."""

    def __init__(self, text: str) -> None:
        if len(text) > 20_000:
            raise CompositionError(f"a composition of {len(text)} characters is too long (at most 20000)")
        self.text = text
        self.tokens = [(match.group(1), match.start(1)) for match in _TOKEN.finditer(text)]
        self.at = 0
        self.depth = 0

    def peek(self) -> str:
        return self.tokens[self.at][0] if self.at < len(self.tokens) else ""

    def take(self, wanted: str) -> None:
        if self.peek() != wanted:
            self.fail(f"expected {wanted!r}")
        self.at += 1

    def name(self) -> str:
        token = self.peek()
        if not NAME.fullmatch(token) or token == NONE:
            self.fail("expected a name or a block")
        self.at += 1
        return token

    def fail(self, why: str) -> NoReturn:
        found = repr(self.peek()) if self.peek() else "the end"
        where = self.tokens[self.at][1] if self.at < len(self.tokens) else len(self.text)
        raise CompositionError(f"cannot read {self.text!r} at character {where}: {why}, found {found}")

    def end(self) -> None:
        if self.peek():
            self.fail("expected the end")

    def composition(self) -> Composition:
        if self.peek() == NONE:
            self.at += 1
            return None
        word = self.name()
        if self.peek() != "(":
            return word
        if word not in BLOCKS:
            self.at -= 1
            self.fail(f"{word!r} is not a block, the blocks are {', '.join(BLOCKS)}")
        self.depth += 1
        if self.depth > DEEPEST:
            self.fail(f"nested deeper than {DEEPEST} blocks")
        block = self.block(word)
        self.depth -= 1
        return block

    def block(self, kind: str) -> Composition:
        children: list[Composition] = []
        numbers: list[float] = []
        options: dict[str, object] = {}
        self.take("(")
        while self.peek() != ")":
            if children:
                self.take(",")
            if self.peek() == OPTIONS.get(kind) and self.follows("="):
                option = self.peek()
                self.at += 2
                options[option] = self.name()
                break
            children.append(self.composition())
            if self.peek() == ":":
                self.take(":")
                numbers.append(self.number(kind))
        self.take(")")
        if kind in NUMBERS and (numbers or kind != "Average"):
            options[NUMBERS[kind]] = numbers
        elif numbers:
            raise CompositionError(f"{kind} takes no numbers, only {', '.join(NUMBERS)} do: {self.text!r}")
        return BLOCKS[kind](*children, **options)  # type: ignore[return-value]

    def follows(self, token: str) -> bool:
        return self.at + 1 < len(self.tokens) and self.tokens[self.at + 1][0] == token

    def number(self, kind: str) -> float:
        token = self.peek()
        try:
            value = float(token) if kind == "Average" else int(token)
        except ValueError:
            self.fail("expected a number" if kind == "Average" else "expected a whole number")
        self.at += 1
        return value
