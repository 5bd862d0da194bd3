"""PEFT's methods as independent baselines, trained here by the same trainer on the same data.

    training.method: peft,  adapter.variant: lora,  adapter.options: {r: 8, lora_alpha: 16}      LoraConfig(r=8, …)

PEFT puts its own layers into a copy of the base, so nothing of ours computes there but the head; where an option is
left out, PEFT's own default and target modules hold. What was trained is written as PEFT writes it. Methods that wrap
the whole model (prompts, prefixes) cannot be put into one and are not offered. Needs peft, the [baselines] extra.
"""

import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import safetensors.torch

from graftwork.errors import RecipeError
from graftwork.model import AdapterModel
from graftwork.schema.problems import nearest

MISSING = "peft is not installed (pip install 'graftwork[baselines]')"
HEAD_ALONE = "the package is the head alone, without scores: these are of PEFT's layers with it, which lie in peft/"
# method -> the name of its configuration in peft, and what it is told
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("LoraConfig", {}),
    "dora": ("LoraConfig", {"use_dora": True}),
    "ia3": ("IA3Config", {}),
    "loha": ("LoHaConfig", {}),
    "lokr": ("LoKrConfig", {}),
    "oft": ("OFTConfig", {}),
    "ln_tuning": ("LNTuningConfig", {}),
}


def configured(kind: str, options: Mapping[str, Any]) -> Any:
    """PEFT's configuration of a method. Raises RecipeError where peft, the method or an option is not there."""
    if kind not in KINDS:
        close = nearest(kind, list(KINDS))
        raise RecipeError(
            f"adapter.variant: {kind!r} is no method of peft that can be put into a model"
            f"{f'; did you mean {close}?' if close else ''}; there are {', '.join(KINDS)}"
        )
    if find_spec("peft") is None:
        raise RecipeError(f"training.method: peft: {MISSING}")
    import peft

    name, told = KINDS[kind]
    try:
        return getattr(peft, name)(**{**told, **options})
    except (TypeError, ValueError) as error:
        raise RecipeError(f"adapter.options: peft's {name} refuses them: {error}") from None


def put(model: AdapterModel, config: Any, head: str) -> None:
    """Put PEFT's layers into the base of a model, in place; they and the head train. Raises RecipeError."""
    import peft

    try:
        peft.inject_adapter_in_model(config, model.base)
    except (ValueError, TypeError, AttributeError, NotImplementedError) as error:  # also of options of a wrong type
        lacks = "target_modules" in str(error) and not config.target_modules
        remedy = "; name the layers: adapter.options: {target_modules: [...]}" if lacks else ""
        raise RecipeError(f"adapter: peft cannot adapt a {type(model.base).__name__}: {error}{remedy}") from None
    model.parts.head(head).requires_grad_(True)


def save(model: AdapterModel, folder: Path) -> None:
    """Write what PEFT trained as `adapter_config.json` and `adapter_model.safetensors`, as it reads them."""
    import peft

    tensors = {name: value.contiguous() for name, value in peft.get_peft_model_state_dict(model.base).items()}
    config = model.base.peft_config["default"].to_dict()
    folder.mkdir()
    safetensors.torch.save_file({name: value.detach().cpu() for name, value in tensors.items()}, folder / NAMES[0])
    (folder / NAMES[1]).write_text(json.dumps(config, indent=2, sort_keys=True, default=_plain) + "\n", "utf8")


NAMES = ("adapter_model.safetensors", "adapter_config.json")


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else str(value)
