"""Which names a part may have, and whether one is free: asked before anything is added or removed."""

from graftwork.compose.parts import Parts
from graftwork.compose.tree import check_name, leaves
from graftwork.errors import AdapterError


def check_part_name(name: str, table: str) -> str:
    """Return the name of a part, or raise CompositionError. A fusion without a name of its own is called like its
    members, "a,b", and so is its head; an adapter's name has no comma."""
    for one in name.split(",") if isinstance(name, str) and table != "adapters" else [name]:
        check_name(one)
    return name


def check_free(parts: Parts, name: str, table: str, overwrite_ok: bool) -> None:
    """Raise unless a part of that name may be added: CompositionError for no name, AdapterError for one in use."""
    check_part_name(name, table)
    if name in parts.records(table) and not overwrite_ok:
        raise AdapterError(f"{table[:-1]} {name!r} is already there; choose another name, or pass overwrite_ok=True")
    if table == "adapters":
        check_unfused(parts, name)


def check_unfused(parts: Parts, name: str) -> None:
    """Raise AdapterError while the adapter is a member of a fusion."""
    users = [key for key, record in parts.fusion_records.items() if name in leaves(record.tree)]
    if users:
        raise AdapterError(f"adapter {name!r} is a member of fusion {', '.join(map(repr, users))}; delete that first")
