"""From a family's row to the modules of one model: every site, what is hooked there, and how wide it is.

Nothing is changed here. Sub-layer sites come first, in the forward's order; linears, their inputs, keys and values, and
embeddings follow. Widths are read off the modules, for towers of one model differ in theirs.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from graftwork.core.families import Family, LayerStack, Linear, Sublayer
from graftwork.core.site import Site
from graftwork.errors import BackboneError

Columns = slice | Tensor  # which columns of a linear's output are meant

_HEAD_WIDTHS = ("head_dim", "attention_head_size", "key_value_proj_dim", "head_size", "dim_per_head")


@dataclass(frozen=True)
class Located:
    """A site with its modules by role, and what its adapter sits on.

    Roles: output, residual, norm, inner (sublayer); linear; attention; embed, parent, which calls it, and holder, which
    has the layers. columns: of the linear's output, None for all. row: what the family says of a sub-layer. way: how an
    attention is reached, or how embeddings get longer.
    """

    site: Site
    modules: Mapping[str, nn.Module]
    anchor: nn.Module
    argument: tuple[int, str] = (0, "hidden_states")
    columns: Columns | None = None
    row: Sublayer | None = None
    way: str = "interface"
    first: Mapping[str, nn.Module] = field(default_factory=dict)  # the same roles in the first layer of the stack


def locate(trunk: nn.Module, family: Family, config: Any) -> tuple[Located, ...]:
    """Every site of a trunk. Raises BackboneError for a row that names what is not there."""
    default = int(config.get_text_config().hidden_size)
    sublayers: list[Located] = []
    others: list[Located] = []
    depths: dict[tuple[str, int], int] = {}
    for stack, layers in _stacks(trunk, family):
        first: dict[str, Mapping[str, nn.Module]] = {}
        for number, layer in enumerate(layers):
            own = list(_sublayers(stack, number, layer, family, default))
            if not own:
                continue
            depth = depths.setdefault((stack.name, number), len(depths))
            found = [*own, *_inside(stack, number, layer, family, default)]
            placed = [replace(one, site=replace(one.site, depth=depth)) for one in found]
            placed = [replace(one, first=first.setdefault(one.site.kind, one.modules)) for one in placed]
            sublayers += placed[: len(own)]
            others += placed[len(own) :]
        others += _embeddings(trunk, stack)
    if not sublayers:
        raise BackboneError(
            f"{type(trunk).__name__} has none of the layers that the family {family.model_types} describes"
        )
    return tuple(replace(one, site=replace(one.site, index=i)) for i, one in enumerate([*sublayers, *others]))


def child(module: nn.Module, path: str) -> nn.Module | None:
    """A sub-module by path, or None."""
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None


def _stacks(trunk: nn.Module, family: Family) -> Iterator[tuple[LayerStack, list[nn.Module]]]:
    for stack in family.stacks:
        if _children_at(trunk, stack.layers):
            yield stack, layers_of(trunk, stack)
        elif not stack.optional:
            raise BackboneError(
                f"the family of {family.model_types} says layers are at {stack.layers!r}, but {type(trunk).__name__} "
                f"has {_children(trunk)}"
            )


def layers_of(trunk: nn.Module, stack: LayerStack) -> list[nn.Module]:
    """The layers of a stack in the order of the forward; none where the trunk has no such stack."""
    return [layer for layers in _children_at(trunk, stack.layers) for layer in layers.children()]


def holders_of(trunk: nn.Module, family: Family) -> list[nn.Module]:
    """The trunk, and the module that holds the layers of each stack: what is called with a mask of its tokens."""
    found = (child(trunk, path) for path in dict.fromkeys(["", *map(_holder, family.stacks)]))
    return [module for module in found if module is not None]


def _holder(stack: LayerStack) -> str:
    return stack.layers.partition(".*")[0].rpartition(".")[0]


def _children_at(module: nn.Module, path: str) -> list[nn.Module]:
    """The modules at a path; `*` stands for every child there."""
    head, star, tail = path.partition(".*.")
    found = child(module, head)
    if found is None or not star:
        return [] if found is None else [found]
    return [below for inside in found.children() for below in _children_at(inside, tail)]


def _sublayers(stack: LayerStack, number: int, layer: nn.Module, family: Family, default: int) -> Iterator[Located]:
    for row in stack.sites:
        modules: dict[str, nn.Module] = {}
        for role in ("output", "residual", "norm", "inner"):
            path = getattr(row, role)
            if path is not None:
                found = _need(layer, path, f"the {role} of site {row.kind!r}", row.optional, family)
                if found is None:
                    break
                modules[role] = found
        else:
            width = _stream_width(modules, stack, row, layer) or default
            site = Site(-1, stack.name, number, -1, row.kind, width, width)
            parent = child(layer, row.output.rpartition(".")[0]) or layer
            anchor = modules["output"] if any(True for _ in modules["output"].parameters()) else parent
            yield Located(site, modules, anchor, row.argument, row=row)


def _stream_width(modules: Mapping[str, nn.Module], stack: LayerStack, row: Sublayer, layer: nn.Module) -> int | None:
    for role in ("norm", "inner", "residual"):
        weight = getattr(modules.get(role), "weight", None)
        if isinstance(weight, Tensor) and weight.dim() == 1:
            return int(weight.shape[0])
    last = "ffn.down" if row.kind == "ffn" else f"{row.kind}.out"
    linears = [child(layer, linear.path) for linear in stack.linears if linear.kind == last]
    return features(linears[0])[1] if linears and linears[0] is not None else None


def _inside(stack: LayerStack, number: int, layer: nn.Module, family: Family, default: int) -> Iterator[Located]:
    """Linears, the inputs of those of the feed-forward layer, and keys and values."""
    widths: dict[str, Site] = {}
    for row in stack.linears:
        module = _need(layer, row.path, f"the linear {row.kind!r}", row.optional, family)
        if module is None:
            continue
        inputs, outputs = features(module)
        columns = None if row.part is None else columns_of(row, stack, layer, module)
        width = outputs if columns is None else _count(columns, outputs)
        site = Site(-1, stack.name, number, -1, row.kind, width, inputs)
        widths[row.kind] = site
        yield Located(site, {"linear": module}, module, (0, "input"), columns)
        if row.kind.startswith("ffn."):
            before = Site(-1, stack.name, number, -1, f"{row.kind}.input", inputs, inputs)
            yield Located(before, {"linear": module}, module, (0, "input"))
    for attention in stack.attentions:
        module = _need(layer, attention.path, f"the attention {attention.kind!r}", attention.optional, family)
        key, query = widths.get(f"{attention.kind}.key"), widths.get(f"{attention.kind}.query")
        if module is None or key is None or query is None:
            continue
        head = _need_head_width(attention.path, module)
        site = Site(
            -1, stack.name, number, -1, f"{attention.kind}.kv", key.width, query.inputs, key.width // head, head
        )
        yield Located(site, {"attention": module}, module, way=attention.way)


def _embeddings(trunk: nn.Module, stack: LayerStack) -> Iterator[Located]:
    prompt = None if stack.unprompted else stack.prompt or stack.embed
    for kind, path in (("embed", stack.embed), ("prompt", prompt)):
        module = None if path is None else child(trunk, path)
        if module is None or path is None:
            continue
        parent = trunk.get_submodule(path.rpartition(".")[0])
        width = _last_width(module, parent)
        if width is not None:
            site = Site(-1, stack.name, -1, -1, kind, width, width)
            caller = trunk if stack.outside else parent  # whose call means that embeddings are made anew
            modules = {"embed": module, "parent": caller, "holder": trunk.get_submodule(_holder(stack))}
            yield Located(site, modules, module if _weighted(module) else parent, way=stack.lengthens)


def _last_width(module: nn.Module, parent: nn.Module) -> int | None:
    """The width of what an embedding module makes: of its last norm, linear or table, or of its parent's table."""
    for place in (module, parent):
        for inner in reversed(list(place.modules())):
            if isinstance(inner, nn.Embedding):
                return int(inner.embedding_dim)
            weight = getattr(inner, "weight", None)
            if isinstance(weight, Tensor) and weight.dim() == 1:
                return int(weight.shape[0])
            if isinstance(inner, nn.Conv2d):
                return int(inner.out_channels)
        if place is parent:
            return None
    return None


def _weighted(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())


def _need(layer: nn.Module, path: str, what: str, optional: bool, family: Family) -> nn.Module | None:
    module = child(layer, path)
    if module is None and not optional:
        raise BackboneError(
            f"the family of {family.model_types} says {what} is {path!r}, but {type(layer).__name__} has "
            f"{_children(layer)}"
        )
    return module


def _children(module: nn.Module) -> str:
    return ", ".join(name for name, _ in module.named_children()) or "no modules"


def features(module: nn.Module) -> tuple[int, int]:
    """How many features a linear takes and gives; a quantised one says so itself, its weight is packed."""
    if isinstance(module, Conv1D):
        return int(module.weight.shape[0]), int(module.weight.shape[1])
    if isinstance(getattr(module, "in_features", None), int):
        return int(module.in_features), int(module.out_features)  # type: ignore[arg-type]
    weight = module.weight
    assert isinstance(weight, Tensor)
    return int(weight.shape[1]), int(weight.shape[0])


def head_width(module: nn.Module) -> int | None:
    """How wide an attention says that its heads are, or None where it does not say."""
    return next((found for name in _HEAD_WIDTHS if isinstance(found := getattr(module, name, None), int)), None)


def _need_head_width(path: str, module: nn.Module) -> int:
    found = head_width(module)
    if found is None:
        raise BackboneError(f"a {type(module).__name__} ({path}) does not say how wide its heads are: {_HEAD_WIDTHS}")
    return found


def columns_of(row: Linear, stack: LayerStack, layer: nn.Module, module: nn.Module) -> Columns:
    """Where part 0 (query), 1 (key) or 2 (value) lies in the output of a merged linear."""
    assert row.part is not None
    outputs = features(module)[1]
    if row.layout == "halves":
        return slice(row.part * (outputs // 2), (row.part + 1) * (outputs // 2))
    out = [child(layer, linear.path) for linear in stack.linears if linear.kind == f"{row.kind.partition('.')[0]}.out"]
    queries = features(out[0])[0] if out and out[0] is not None else outputs // 3  # what the output projection takes
    others = (outputs - queries) // 2
    if row.layout == "blocks":
        starts = (0, queries, queries + others, outputs)
        return slice(starts[row.part], starts[row.part + 1])
    parent = child(layer, row.path.rpartition(".")[0]) or layer
    head = _need_head_width(row.path, parent)
    if row.layout == "heads":
        return torch.arange(outputs).view(-1, 3, head)[:, row.part].reshape(-1)
    if row.layout == "groups":  # the queries of a group of heads, their one key, their one value, the next group
        groups = torch.arange(outputs).view(others // head, -1, head)
        return (groups[:, :-2] if row.part == 0 else groups[:, row.part - 3 : row.part - 2 or None]).reshape(-1)
    raise BackboneError(
        f"the layout {row.layout!r} of {row.path!r} is not known; there are blocks, halves, heads, groups"
    )


def _count(columns: Columns, outputs: int) -> int:
    return len(range(outputs)[columns]) if isinstance(columns, slice) else int(columns.numel())
