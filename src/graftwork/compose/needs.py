"""What a configuration needs of a model besides places, seen when an adapter is added.

Prompts: rows that may get longer, or a row of the families table gives the reason why not. One bottleneck for all
layers: layers on one device. A union is asked for each of its members. What finds no place for other reasons is refused
where it is built.
"""

from graftwork.core.adapter import MethodConfig
from graftwork.core.backbone import Backbone
from graftwork.core.bottleneck import BottleneckConfig
from graftwork.errors import AdapterError


def check_needs(name: str, config: MethodConfig, backbone: Backbone) -> None:
    """Raise AdapterError, with the reason, for what the model cannot give."""
    for member in getattr(config, "members", ()):
        check_needs(name, member, backbone)
    if isinstance(config, BottleneckConfig) and config.shared:
        devices = {str(backbone.placement(site)[0]) for site in backbone.sites if config.adapts(site)}
        if len(devices) > 1:
            raise AdapterError(
                f"adapter {name!r}: shared=True is one bottleneck for all layers, and they lie on "
                f"{', '.join(sorted(devices))}; set shared=False, or stacks and leave_out to those of one device"
            )
    reasons = dict.fromkeys(stack.unprompted for stack in backbone.family.stacks if stack.unprompted)
    if config.kind != "prompt_tuning" or not reasons or any(site.place == "prompt" for site in backbone.sites):
        return
    raise AdapterError(
        f"adapter {name!r}: {config.kind} needs {config.where}, and {backbone.config.model_type} has none: "
        f"{' and '.join(reasons)}; use another method on this model"
    )
