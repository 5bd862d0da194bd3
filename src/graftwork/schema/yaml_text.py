"""YAML text <-> plain data, with the line of every key.

The one place that knows YAML. Plain scalars follow the JSON-like rules of YAML 1.2, not PyYAML's 1.1: `1e-4` is a
number, `yes`, `no`, `on`, `off`, `1:30`, `01` and `2020-01-01` are text, keys are always text. Tags that build objects,
keys written twice and aliases that contain themselves are problems, all found in one pass. Knows nothing of recipes.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

KeyPath = tuple[str | int, ...]

_TAG = "tag:yaml.org,2002:"
# (tag, what matches it, the characters it may begin with); the first match wins, everything else is text.
_PLAIN: tuple[tuple[str, str, list[str]], ...] = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.(?:inf|Inf|INF))|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    ("merge", r"<<", ["<"]),
)


class _Loader(yaml.SafeLoader):
    # A fresh table: inheriting it would bring the 1.1 readings of `yes`, `1:30` and dates back.
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012


class _Dumper(yaml.SafeDumper):
    """Quotes whatever YAML 1.1 or `_Loader` would read as something other than text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        # PyYAML folds some line separators away unless they are escaped.
        return self.represent_scalar(_TAG + "str", data, style=None if data.isprintable() else '"')


_Dumper.add_representer(str, _Dumper.represent_str)
for _tag, _pattern, _first in _PLAIN:
    _Loader.add_implicit_resolver(_TAG + _tag, re.compile(rf"(?:{_pattern})\Z"), _first)
    _Dumper.add_implicit_resolver(_TAG + _tag, re.compile(rf"(?:{_pattern})\Z"), _first)


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong at one key; `line` counts from 1."""

    path: KeyPath
    message: str
    line: int | None = None


@dataclass(frozen=True)
class Document:
    """What the text says, where each key stands, and what could not be read."""

    data: Any
    lines: dict[KeyPath, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def line(self, path: KeyPath) -> int | None:
        """The line of the key at `path`, or of the nearest section around it."""
        while len(path) > 1 and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path)


def read(text: str) -> Document:
    """Read one YAML document. Raises nothing: what is wrong is in `problems`, and `data` holds the rest."""
    try:
        node = _Loader(text).get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        hint = "; indent with spaces, not with tabs" if "\\t" in str(error.problem) else ""
        line = mark.line + 1 if mark else None
        return Document(None, problems=[Problem((), f"not YAML: {error.problem or error.context}{hint}", line)])
    except yaml.YAMLError as error:
        return Document(None, problems=[Problem((), "not YAML: " + " ".join(str(error).split()))])
    except RecursionError:
        return Document(None, problems=[Problem((), "not a recipe: nested too deeply")])
    if node is None:
        return Document(None)
    builder = _Builder()
    data = builder.value(node, (), ())
    return Document(data, builder.lines, builder.problems)


def write(data: Mapping[str, Any]) -> str:
    """`data` as YAML in the order given; `read(write(data)).data == data`."""
    return str(yaml.dump(dict(data), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120))


def dotted(path: KeyPath) -> str:
    """A key as it is spoken of: training.epochs. What cannot be printed is escaped."""
    words = [str(part) for part in path]
    return ".".join(word if word.isprintable() else repr(word)[1:-1] for word in words)


class _Builder:
    """Turns YAML nodes into plain data. Each node is built once, so repeated aliases cost nothing."""

    def __init__(self) -> None:
        self.lines: dict[KeyPath, int] = {}
        self.problems: list[Problem] = []
        self._built: dict[int, Any] = {}

    def value(self, node: yaml.Node, path: KeyPath, above: tuple[int, ...]) -> Any:
        self.lines.setdefault(path, node.start_mark.line + 1)
        if id(node) in above:
            return self._problem(node, path, "an alias that contains itself has no value")
        if id(node) not in self._built:
            inside = (*above, id(node))
            if isinstance(node, yaml.ScalarNode):
                built = self._scalar(node, path)
            elif node.tag not in (_TAG + "map", _TAG + "seq"):
                built = self._refused_tag(node, path)
            elif isinstance(node, yaml.MappingNode):
                built = self._mapping(node, path, inside)
            else:
                built = [self.value(item, (*path, index), inside) for index, item in enumerate(node.value)]
            self._built[id(node)] = built
        return self._built[id(node)]

    def _mapping(self, node: yaml.MappingNode, path: KeyPath, above: tuple[int, ...]) -> dict[str, Any]:
        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self._problem(key_node, path, "a key must be one word, not a list or a mapping")
                continue
            key, line = str(key_node.value), key_node.start_mark.line + 1
            here = (*path, key)
            if key_node.tag == _TAG + "merge":
                merged = self._merge(merged, value_node, here, above)
            elif key in own:
                self._problem(
                    key_node,
                    here,
                    f"written twice (first in line {self.lines[here]}); keep one of them",
                )
            else:
                self.lines[here] = line
                own[key] = self.value(value_node, here, above)
        return {**merged, **own}

    def _merge(self, merged: dict[str, Any], node: yaml.Node, path: KeyPath, above: tuple[int, ...]) -> dict[str, Any]:
        source = self.value(node, path, above)
        for mapping in source if isinstance(source, list) else [source]:
            if not isinstance(mapping, dict):
                self._problem(node, path, "a merge key takes a mapping or a list of mappings")
                continue
            merged = {**mapping, **merged}
        return merged

    def _scalar(self, node: yaml.ScalarNode, path: KeyPath) -> Any:
        text = str(node.value)
        try:
            match node.tag.removeprefix(_TAG):
                case "str":
                    return text
                case "null":
                    return None
                case "bool":
                    return {"true": True, "false": False}[text.lower()]
                case "int":
                    return int(text)
                case "float":
                    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
                case "merge":  # `<<` as a value, not as a key
                    return text
                case _:
                    return self._refused_tag(node, path)
        except (ValueError, KeyError):
            shown = text if len(text) <= 40 else f"{text[:20]}... ({len(text)} characters)"
            return self._problem(node, path, f"{shown!r} cannot be read as {node.tag.removeprefix(_TAG)}")

    def _refused_tag(self, node: yaml.Node, path: KeyPath) -> Any:
        tag = node.tag.replace(_TAG, "!!")
        return self._problem(node, path, f"the tag {tag!r} is not allowed; a recipe holds plain values only")

    def _problem(self, node: yaml.Node, path: KeyPath, message: str) -> Any:
        """Note a problem; what could not be read has no value."""
        key = f"{dotted(path)}: " if path else ""
        self.problems.append(Problem(path, key + message, node.start_mark.line + 1))
        return None
