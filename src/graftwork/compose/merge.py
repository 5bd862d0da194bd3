"""An adapter of linears written into the base, for speed or for export, and taken out again bit for bit.

    model.merge_adapter("a")      the base now computes what adapters="a" did: W + s·B·A for LoRA
    model(...)                    no adapter code runs; the answer is the same within rounding (dropout is off)
    model.reset_adapter()         every bit of the base is what it was

The one operation that changes the frozen base, and only while it lasts. Meanwhile "no adapter" and every other adapter
would be answered by weights that are not the base's; so calls are answered for the merged adapter alone, and nothing
can be added, trained, loaded or packaged until the base is itself again. The base's fingerprint stays that of the base.
"""

from graftwork.compose.parts import Parts
from graftwork.core.backbone import Backbone
from graftwork.core.merge import Spot, check, write
from graftwork.errors import AdapterError

_WHY = {
    "bottleneck": "a non-linearity stands between its matrices, so no weight computes what it does",
    "reft": "it edits some positions of a row and not the others",
    "prefix_tuning": "it adds positions to the attention",
    "prompt_tuning": "it adds tokens",
}


def merge_adapter(parts: Parts, backbone: Backbone, name: str) -> str:
    """Write an adapter into the base's weights, until `reset_adapter`, and make it the active setup.

    For LoRA, DoRA, (IA)³, VeRA and BitFit without gates, and unions of them. Raises AdapterError for any other, with
    the reason, and BackboneError for a base whose weights cannot take it up; then nothing is changed.
    """
    parts.need_adapter(name)
    parts.need_unmerged(f"adapter {name!r} cannot be merged")
    spots = _spots(parts, backbone, name)
    check(backbone.model, spots)
    _ = backbone.fingerprint  # kept from now on: what is hashed is the base, not what it holds for a while
    with backbone.runtime.running(None):  # between two forwards
        parts.merged = name, write(spots)
    return name


def reset_adapter(parts: Parts, backbone: Backbone) -> None:
    """Give the base its own weights back, to the last bit; nothing happens where no adapter is merged."""
    if parts.merged is not None:
        with backbone.runtime.running(None):
            parts.merged[1].restore()
            parts.merged = None


def _spots(parts: Parts, backbone: Backbone, name: str) -> list[Spot]:
    config, modules = parts.adapter_configs[name], parts.modules_of("adapters", name)
    spots = []
    for site in backbone.sites:
        if site.name not in modules:
            continue
        located = backbone.located[site.index]
        linear = located.modules.get("linear")
        kinds = [config.kind, *(member.kind for member in getattr(config, "members", ()))]
        reasons = [_WHY[kind] for kind in kinds if kind in _WHY]
        if linear is None or reasons:
            raise AdapterError(
                f"adapter {name!r} ({' | '.join(kinds)}) cannot be merged into the base: "
                + (reasons[0] if reasons else f"{site.name} is no frozen linear")
                + ". LoRA, DoRA, (IA)³, VeRA and BitFit can"
            )
        spots.append(Spot(linear, located.columns, site.place == "input", modules[site.name]))
    return spots
