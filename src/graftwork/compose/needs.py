"""Why a model takes no prompts, said when one is added: a row of the families table gives the reason.

A union is asked for each of its members. What finds no place for other reasons is refused where it is built.
"""

from graftwork.core.adapter import MethodConfig
from graftwork.core.backbone import Backbone
from graftwork.errors import AdapterError


def check_needs(name: str, config: MethodConfig, backbone: Backbone) -> None:
    """Raise AdapterError, with the reason, for prompts on a model whose rows cannot get longer."""
    for member in getattr(config, "members", ()):
        check_needs(name, member, backbone)
    reasons = dict.fromkeys(stack.unprompted for stack in backbone.family.stacks if stack.unprompted)
    if config.kind != "prompt_tuning" or not reasons or any(site.place == "prompt" for site in backbone.sites):
        return
    raise AdapterError(
        f"adapter {name!r}: {config.kind} needs {config.where}, and {backbone.config.model_type} has none: "
        f"{' and '.join(reasons)}; use another method on this model"
    )
