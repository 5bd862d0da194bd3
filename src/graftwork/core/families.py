"""Where the sites are: one row of data per architecture, no copied model code.

The words of a row are in `core/family.py`, the rows in `core/families_*.py` by what the models are. To support another
architecture, add a row; `core/certify.py` proves it on a random input.
"""

from dataclasses import replace
from typing import Any

from graftwork.core.families_decoders import DECODERS
from graftwork.core.families_encoders import ENCODERS
from graftwork.core.families_pairs import PAIRS
from graftwork.core.families_senses import SENSES
from graftwork.core.family import Attention, Family, LayerStack, Linear, Sublayer, Tower, Variant

__all__ = [
    "FAMILIES",
    "OF_MODEL_TYPE",
    "Attention",
    "Family",
    "LayerStack",
    "Linear",
    "Sublayer",
    "Tower",
    "Variant",
    "family_of",
]

FAMILIES: tuple[Family, ...] = (*ENCODERS, *DECODERS, *PAIRS, *SENSES)

OF_MODEL_TYPE: dict[str, Family] = {name: family for family in FAMILIES for name in family.model_types}


def family_of(config: Any, trunk: Any) -> Family | None:
    """The family of a model as its configuration has it: its variant, and the stacks of the models inside it.

    None where the table has no row for it, or for a model inside it.
    """
    row = OF_MODEL_TYPE.get(config.model_type)
    if row is None:
        return None
    for variant in row.variants:
        if all(getattr(config, name, None) == value for name, value in variant.when):
            row = replace(row, stacks=variant.stacks, variants=())
            break
    if row.towers:
        stacks = [_stacks_of(tower, config, trunk) for tower in row.towers]
        if None in stacks:
            return None
        row = replace(row, stacks=tuple(stack for tower in stacks for stack in tower or ()), towers=())
    # a decoder whose model type is an encoder's
    return replace(row, causal=True) if getattr(config, "is_decoder", False) and not row.causal else row


def _stacks_of(tower: Tower, config: Any, trunk: Any) -> tuple[LayerStack, ...] | None:
    inside = getattr(trunk, tower.path, None)
    if inside is None and tower.absent:
        return ()
    inner = family_of(getattr(config, tower.config), inside)
    if inner is None:
        return None
    prefix = getattr(inside, "base_model_prefix", "")  # under a head of its own: a decoder that has its vocabulary
    path = f"{tower.path}.{prefix}" if prefix and hasattr(inside, prefix) else tower.path
    return tuple(_moved(stack, tower, path) for stack in inner.stacks)


def _moved(stack: LayerStack, tower: Tower, path: str) -> LayerStack:
    """A stack as part of a larger model."""
    embed, prompt = (stack.embed, stack.prompt) if tower.embeds else (None, None)
    return replace(
        stack,
        name=f"{tower.name}.{stack.name}" if stack.name else tower.name,
        layers=f"{path}.{stack.layers}",
        embed=None if embed is None else f"{path}.{embed}",
        prompt=None if prompt is None else f"{path}.{prompt}",
        lengthens="entry" if tower.enters else stack.lengthens,
        unprompted=tower.unprompted or stack.unprompted,
        outside=tower.outside or stack.outside,
    )
