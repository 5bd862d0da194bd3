"""What PEFT's and LLM-Adapters' files have in common: modules named by path, to be found among the base's linears.

    base_model.model.<path of the module>.<parameter>

A path is looked up as the base has it today, then as transformers 4 had it. A file may adapt any linears of any layers;
our configurations name kinds of linears and layers, so what is missing of a kind is filled with what changes nothing.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from graftwork.errors import PackageError
from graftwork.registry.foreign.imported import Facts, Place
from graftwork.registry.foreign.layouts import LAYOUTS

ROOT = "base_model.model."
_PREFIXES = 3  # how many steps of a path may stand before the trunk
_FLAGS = {"ffn.up": "intermediate_lora", "ffn.gate": "gate_lora", "ffn.down": "output_lora"}
_LETTERS = {"query": "q", "key": "k", "value": "v", "out": "o"}


def places_of(path: str, facts: Facts, model_type: str) -> tuple[Place, ...]:
    """The sites of a module by its path under `base_model.model.`; empty where it is no linear that is known."""
    steps = path.removeprefix(ROOT).split(".")
    for at in range(min(_PREFIXES, len(steps))):
        found = facts.places.get(".".join(steps[at:]))
        if found is not None:
            return found
    layout = next((layout for layout in LAYOUTS if model_type in layout.model_types), None)
    site = layout.site(".".join(steps)) if layout else None
    known = {place.site: place for places in facts.places.values() for place in places}
    return (known[site],) if site in known else ()


def need_base(facts: Facts, where: str) -> None:
    """Raise PackageError unless the linears of the base are known."""
    if not facts.places:
        raise PackageError(f"{where}: names modules by their paths; give the base that they are paths in")


def placement(sites: Iterable[str], facts: Facts) -> tuple[dict[str, Any], list[Place]]:
    """The fields of a configuration that means these sites, and the places that it means besides them."""
    wanted = set(sites)
    known = [place for places in facts.places.values() for place in places]
    kinds = {place.kind for place in known if place.site in wanted}
    flags: dict[str, Any] = {flag: kind in kinds for kind, flag in _FLAGS.items()}
    attentions = [kind.partition(".") for kind in kinds if not kind.startswith("ffn")]
    letters = {_LETTERS[part] for _, _, part in attentions}
    flags |= {
        "attn_matrices": [letter for letter in "qkvo" if letter in letters],
        "selfattn_lora": any(block == "attn" for block, _, _ in attentions),
        "crossattn_lora": any(block == "cross" for block, _, _ in attentions),
    }
    meant = [place for place in known if means(flags, place.kind)]
    adapted = {place.depth for place in known if place.site in wanted}
    flags["leave_out"] = sorted({place.depth for place in meant} - adapted)
    extra = [place for place in meant if place.depth in adapted and place.site not in wanted]
    return flags, extra


def means(flags: Mapping[str, Any], kind: str) -> bool:
    """Whether flags mean a kind of linear, as our methods on linears read them."""
    block, _, part = kind.partition(".")
    if block == "ffn":
        return bool(flags[_FLAGS[kind]])
    return (
        bool(flags[{"attn": "selfattn_lora", "cross": "crossattn_lora"}[block]])
        and _LETTERS[part] in flags["attn_matrices"]
    )
