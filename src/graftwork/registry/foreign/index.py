"""AdapterHub's archived index: what `sentiment/sst-2@ukp` means for a base, and the repository it lives in today.

The 291 entries were frozen in May 2024 and ship as a table, so that no index is ever asked for. An identifier is
`task/subtask@org`, where the organisation and the task may be left out; several files of one task differ by their
configuration, of which one is the default.
"""

import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from graftwork.errors import NotFound

OWNER = "AdapterHub"
# ids of configurations that have a name
CONFIGS = {"pfeiffer": "9076f36a74755ac4", "houlsby": "b1017368d7a97b11", "pfeiffer+inv": "e15331acc3f0a5c0"}
CONFIGS |= {"seq_bn": CONFIGS["pfeiffer"], "double_seq_bn": CONFIGS["houlsby"], "seq_bn_inv": CONFIGS["pfeiffer+inv"]}
_IDENTIFIER = re.compile(r"([^@/\s]+)(?:/([^@/\s]+))?(?:@([^@/\s]+))?")


@dataclass(frozen=True)
class Entry:
    """One adapter of the index; `config` is the hash that AdapterHub makes of a configuration."""

    base: str
    task: str
    subtask: str
    org: str
    config: str
    default: bool
    repository: str

    def __str__(self) -> str:
        return f"{self.task}/{self.subtask}@{self.org} for {self.base} ({self.repository})"


@cache
def entries() -> tuple[Entry, ...]:
    """The whole table."""
    text = files("graftwork.registry.foreign").joinpath("adapterhub_index.tsv").read_text("utf8")
    rows = [line.split("\t") for line in text.splitlines()[1:]]
    return tuple(
        Entry(base, task, subtask, org, config, default == "yes", f"{OWNER}/{name}")
        for base, task, subtask, org, config, default, name in rows
    )


def is_identifier(text: str) -> bool:
    """Whether a text has the form of the index and names something in it: a task, or a task with its base left open."""
    match = _IDENTIFIER.fullmatch(text)
    return match is not None and bool(_matching(*match.groups()))


def resolve(identifier: str, base: str | None = None, config: str | None = None) -> Entry:
    """The entry that an identifier means. base: the name of the frozen model. config: a name such as `pfeiffer`, or
    its hash. Raises NotFound that lists what there is.
    """
    match = _IDENTIFIER.fullmatch(identifier)
    found = _matching(*match.groups()) if match else []
    if not found:
        raise NotFound(
            f"{identifier!r} is not in AdapterHub's index of {len(entries())} adapters; an identifier is written "
            "task/subtask@org, as in sentiment/sst-2@ukp"
        )
    if base is not None:
        own = [entry for entry in found if _same_base(entry.base, base)]
        if not own:
            raise NotFound(f"{identifier!r} has no adapter for {base!r}; there are ones for {_bases(found)}")
        found = own
    if config is not None:
        wanted = CONFIGS.get(config, config)
        own = [entry for entry in found if entry.config == wanted]
        if not own:
            raise NotFound(f"{identifier!r} has none with configuration {config!r}; there are {_listed(found)}")
        found = own
    if len({entry.base for entry in found}) > 1:
        raise NotFound(f"{identifier!r} was trained for several bases, {_bases(found)}: say which one is meant")
    if len(found) > 1:
        found = [entry for entry in found if entry.default] or found
    if len(found) > 1:
        raise NotFound(f"{identifier!r} means several adapters; say which configuration: {_listed(found)}")
    return found[0]


def _matching(first: str, second: str | None, org: str | None) -> list[Entry]:
    return [
        entry
        for entry in entries()
        if ((entry.task, entry.subtask) == (first, second) if second else first in (entry.task, entry.subtask))
        and org in (None, entry.org)
    ]


def _same_base(known: str, asked: str) -> bool:
    """Whether two names mean one model: hubs moved `bert-base-uncased` under an owner."""
    return known == asked or known.rpartition("/")[2] == asked.rpartition("/")[2]


def _bases(found: list[Entry]) -> str:
    return ", ".join(sorted({entry.base for entry in found}))


def _listed(found: list[Entry]) -> str:
    return "; ".join(f"{entry.config} ({entry.repository})" for entry in found[:8])
