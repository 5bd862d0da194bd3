"""What a row of the families table is: the words in which an architecture is described.

For each stack of layers and each sub-layer in it a row names the module whose *output* is h₀ (the last one before the
residual add, after dropout where that is a module), the module that *receives* the residual r (as which argument), and
the norm after the add (post-LN) or none (pre-LN). It also names the frozen linears, the attention modules and the
modules that make the embeddings. Paths are relative to the layer; stacks and embeddings are relative to the trunk.

Nothing here knows of any one architecture: `core/families.py` has the table.
"""

from dataclasses import dataclass
from typing import Any

# what a message says where nothing is known of a model
BY_HAND = (
    "Describe the layers with a Family (stacks of layers, and for each sub-layer the module whose output is added to "
    "the residual stream, the module that receives the residual, and the norm after the add) and pass it as family=; "
    "check the description with graftwork.core.certify.certify(model, inputs, family)"
)


@dataclass(frozen=True)
class Sublayer:
    """One sub-layer site of a layer. `residual` names a module and which argument of its call is r.

    norm: after the add. inner: a norm on the branch, between h₀ and the add. beside: the block adds this sub-layer and
    the one of that kind to one residual (GPT-J): r is then the stream after the other, and nothing is read off
    `residual`. optional: some layers of the family lack it (cross-attention).

    shared: `output` serves several sub-layers of the layer in turn, so it counts only while this one's residual waits.
    flat: the block joins rows and tokens there, (B·T, D). onward: the module that receives the stream after the site
    (the norm's output where it is `norm`), where that is neither the next site nor the end of the layer.
    """

    kind: str  # attn | ffn | cross
    output: str
    residual: str
    norm: str | None = None
    argument: tuple[int, str] = (0, "hidden_states")
    optional: bool = False
    inner: str | None = None
    beside: str | None = None
    shared: bool = False
    flat: bool = False
    onward: str | None = None


@dataclass(frozen=True)
class Linear:
    """One frozen linear of a layer: `attn.query`, `cross.key`, `attn.out`, `ffn.up`, `ffn.gate`, `ffn.down`.

    part: which columns of the output are meant where one linear makes query, key and value: 0, 1 or 2. layout: how they
    lie there; "blocks": all queries, all keys, all values · "heads": query, key, value of head 0, of head 1, … ·
    "groups": the queries of a group of heads, its one key, its one value, those of the next group · "halves": two
    blocks of one size, parts 0 and 1
    """

    kind: str
    path: str
    part: int | None = None
    layout: str = "blocks"
    optional: bool = False


@dataclass(frozen=True)
class Attention:
    """One attention of a layer: kind attn or cross. way: how anything gets in front of its keys and values.

    "interface": it calls transformers' attention interface · "cache": it asks the cache `layer_past` for them ·
    "relative": it is DeBERTa's
    """

    kind: str
    path: str
    optional: bool = False
    way: str = "interface"


@dataclass(frozen=True)
class LayerStack:
    """One list of layers. `optional`: absent in some classes of the family (an encoder without its decoder).

    layers: the path of the list; `groups.*.layers` are the lists of all groups, one after another. embed: the module
    whose output are the embeddings that enter the first layer. prompt: the one whose output may get longer, where that
    is another (before positions are added). lengthens: how that is done (`core/embedded.py`). unprompted: why it cannot
    be done. outside: whether the whole model looks the embeddings up, and not the module that holds them.
    """

    name: str
    layers: str
    sites: tuple[Sublayer, ...]
    optional: bool = False
    linears: tuple[Linear, ...] = ()
    attentions: tuple[Attention, ...] = ()
    embed: str | None = None
    prompt: str | None = None
    lengthens: str = "output"
    unprompted: str = ""
    outside: bool = False


@dataclass(frozen=True)
class Variant:
    """The stacks of a family under a configuration whose fields have these values."""

    when: tuple[tuple[str, Any], ...]
    stacks: tuple[LayerStack, ...]


@dataclass(frozen=True)
class Tower:
    """A model inside a model, of a family of its own: `config` names its configuration, `path` its module.

    Its one stack is called as the tower is. absent: some classes of the model come without it. embeds: whether anything
    may attach to its embeddings. enters: prompts are put in where it is given embeddings. unprompted, outside: as in a
    stack.
    """

    name: str
    config: str
    path: str
    absent: bool = False
    embeds: bool = True
    enters: bool = False
    unprompted: str = ""
    outside: bool = False


@dataclass(frozen=True)
class Family:
    """One architecture: the model types (config.model_type) that share its layout, and its stacks.

    variants: the first that fits the configuration goes before `stacks`. towers: the models that it is made of.
    """

    model_types: tuple[str, ...]
    stacks: tuple[LayerStack, ...] = ()
    causal: bool = False  # the last stack's tokens see only what is before them
    variants: tuple[Variant, ...] = ()
    towers: tuple[Tower, ...] = ()


def linears(
    attention: str, names: tuple[str, str, str, str], kind: str = "attn", optional: bool = False
) -> tuple[Linear, ...]:
    """The four linears of an attention by their paths: query, key, value, out, each below the path `attention`."""
    parts = ("query", "key", "value", "out")
    return tuple(
        Linear(f"{kind}.{part}", f"{attention}.{name}", optional=optional)
        for part, name in zip(parts, names, strict=True)
    )


def merged(path: str, layout: str, out: str) -> tuple[Linear, ...]:
    """The linears of an attention where one makes query, key and value."""
    parts = tuple(Linear(f"attn.{name}", path, part, layout) for part, name in enumerate(("query", "key", "value")))
    return (*parts, Linear("attn.out", out))


def feed_forward(up: str, down: str, gate: str | None = None) -> tuple[Linear, ...]:
    """The linears of a feed-forward layer."""
    return (Linear("ffn.up", up), *(() if gate is None else (Linear("ffn.gate", gate),)), Linear("ffn.down", down))
