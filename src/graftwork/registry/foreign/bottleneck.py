"""AdapterHub's bottleneck adapters, of every version, in our names: down, up, norms, gate, scale, PHM, invertible.

    adapter_down.0 -> down      adapter_up -> up      adapter_norm_before -> norm_before      scaling -> scale

With a norm of its own in front, the down projection is `adapter_down.1` and the norm is stored twice. Compacter's
shared rule lies at the model and becomes the pseudo-site `shared`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from graftwork.errors import PackageError
from graftwork.registry.foreign.imported import Ledger
from graftwork.registry.foreign.keys import Key
from graftwork.registry.foreign.places import Layout

# fields of BnConfig -> its default; our configuration has the same names
DEFAULTS: dict[str, Any] = {
    "mh_adapter": False,
    "output_adapter": True,
    "cross_adapter": False,
    "reduction_factor": 16,
    "non_linearity": "relu",
    "original_ln_before": False,
    "original_ln_after": True,
    "ln_before": False,
    "ln_after": False,
    "init_weights": "bert",
    "init_weights_seed": None,
    "is_parallel": False,
    "scaling": 1.0,
    "use_gating": False,
    "residual_before_ln": True,
    "adapter_residual_before_ln": False,
    "leave_out": [],
    "dropout": 0.0,
    "stochastic_depth": 0.0,
}
PHM: dict[str, Any] = {
    "phm_layer": False,
    "phm_dim": 4,
    "factorized_phm_W": True,
    "shared_W_phm": False,
    "shared_phm_rule": True,
    "factorized_phm_rule": False,
    "phm_c_init": "normal",
    "phm_init_range": 0.0001,
    "learn_phm": True,
    "hypercomplex_nonlinearity": "glorot-uniform",
    "phm_rank": 1,
    "phm_bias": True,
}
INVERTIBLE: dict[str, Any] = {"inv_adapter": None, "inv_adapter_reduction_factor": None}
# what early files also say, and the only value that changes nothing
_FORMERLY: dict[str, tuple[Any, ...]] = {"attention_type": ("sent-lvl", None), "new_attention_norm": (False, None)}
_RENAMED = {"gelu": "gelu_new", "gelu_orig": "gelu"}  # what version 1 and 2 meant

_FIELDS = {"attn": "mh_adapter", "ffn": "output_adapter", "cross": "cross_adapter"}
_MODULES = {
    "adapter_up": "up",
    "adapter_norm_before": "norm_before",
    "adapter_norm_after": "norm_after",
    "gate": "gate",
}
PHM_LEAVES = {
    "W": "W",
    "W_left": "W_left",
    "W_right": "W_right",
    "phm_rule": "rule",
    "phm_rule_left": "rule_left",
    "phm_rule_right": "rule_right",
    "b": "bias",
}
SHARED = {
    "phm_rule": "rule",
    "phm_rule_left": "rule_left",
    "phm_rule_right": "rule_right",
    "W_down": "down.W",
    "W_down_left": "down.W_left",
    "W_down_right": "down.W_right",
    "W_up": "up.W",
    "W_up_left": "up.W_left",
    "W_up_right": "up.W_right",
}


@dataclass(frozen=True)
class Era:
    """What the age of a file decides: whether it says no version, and the type that version 1 gave it."""

    unversioned: bool = False
    kind: str = ""


def bottleneck_config(written: Mapping[str, Any], era: Era, where: str) -> dict[str, Any]:
    """Our configuration from AdapterHub's, every default written out. Raises PackageError for an unknown field."""
    known = {key.lower(): key for key in (*DEFAULTS, *PHM, *INVERTIBLE)}
    config = DEFAULTS | PHM | INVERTIBLE
    for key, value in written.items():
        if key in ("architecture", "invertible_adapter"):
            continue
        if key.lower() in _FORMERLY:
            if value not in _FORMERLY[key.lower()]:
                raise PackageError(f"{where}: {key} {value!r} was an experiment of version 1 that is not read")
        elif key.lower() in known:
            config[known[key.lower()]] = value
        else:
            raise PackageError(f"{where}: unknown field {key!r} of a bottleneck adapter, with value {value!r:.80}")
    block = written.get("invertible_adapter")
    if block:
        config |= {"inv_adapter": block["block_type"], "inv_adapter_reduction_factor": block["reduction_factor"]}
    if era.unversioned:
        config["non_linearity"] = _RENAMED.get(config["non_linearity"], config["non_linearity"])
    if isinstance(config["scaling"], int) and not isinstance(config["scaling"], bool):
        config["scaling"] = float(config["scaling"])
    for key in ("leave_out", "dropout", "stochastic_depth"):
        config[key] = DEFAULTS[key] if config[key] is None else config[key]
    return {"kind": "bottleneck", **_meaningful(config)}


def _meaningful(config: dict[str, Any]) -> dict[str, Any]:
    """Without the fields of parts that this adapter lacks: they say nothing, and differ between versions."""
    dropped = set() if config["phm_layer"] else set(PHM)
    dropped |= set() if config["inv_adapter"] else set(INVERTIBLE)
    return {key: value for key, value in config.items() if key not in dropped}


def read_bottleneck(
    ledger: Ledger, keys: list[Key], config: Mapping[str, Any], layout: Layout, era: Era
) -> dict[str, Any]:
    """Take every tensor of a bottleneck adapter and return the configuration, corrected by what the file holds.

    Raises PackageError: a tensor without a place, a shared rule that the file lost.
    """
    config = dict(config)
    if config.get("inv_adapter") == "glow":
        raise PackageError(f"{ledger.where}: AdapterHub's GLOW fails on every input, so no such adapter was trained")
    for key in keys:
        if key.collection == "adapters":
            site = layout.site(key.place)
            if site is not None and config[_FIELDS[site.rpartition("/")[2]]]:  # of a union, another member's otherwise
                _take(ledger, key, f"adapter/{site}", config)
        elif key.collection == "invertible" and layout.is_embed(key.place):
            ledger.take(key.text, f"adapter/{layout.embed_site}/{key.leaf}")
        elif key.collection == "shared" and key.leaf in SHARED and layout.is_root(key.place):
            ledger.take(key.text, f"adapter/shared/{SHARED[key.leaf]}")
    if config.get("inv_adapter") and not any(key.collection == "invertible" for key in keys):
        if era.kind != "text_task":
            raise PackageError(f"{ledger.where}: names an invertible adapter ({config['inv_adapter']}) and has none")
        for field in INVERTIBLE:
            config.pop(field)
        ledger.notes.append("version 1 named an invertible adapter that a task adapter never had: left out")
    _check_shared(ledger, config)
    return config


def _check_shared(ledger: Ledger, config: Mapping[str, Any]) -> None:
    wanted = config.get("phm_layer") and (config["shared_phm_rule"] or config["shared_W_phm"])
    if wanted and not any(name.startswith("adapter/shared/") for name in ledger.tensors):
        raise PackageError(
            f"{ledger.where}: a Compacter whose shared parameters are not in the file: AdapterHub loses them when it "
            "saves from a bare model. Save it again from a model with a head"
        )


def _take(ledger: Ledger, key: Key, site: str, config: Mapping[str, Any]) -> None:
    module, _, rest = key.leaf.partition(".")
    if key.leaf == "scaling":
        ledger.take(key.text, f"{site}/scale")
    elif module in _MODULES:
        ledger.take(key.text, f"{site}/{_MODULES[module]}.{_parameter(rest)}")
    elif module == "adapter_down":
        number, _, parameter = rest.partition(".")
        down = "1" if config["ln_before"] else "0"
        if number == down:
            ledger.take(key.text, f"{site}/down.{_parameter(parameter)}")
        elif number == "0" and config["ln_before"]:
            _ignore_copy(ledger, key, parameter)


def _parameter(name: str) -> str:
    return PHM_LEAVES.get(name, name)


def _ignore_copy(ledger: Ledger, key: Key, parameter: str) -> None:
    """The norm in front is stored twice; both must say the same."""
    twin = key.text.removesuffix(f"adapter_down.0.{parameter}") + f"adapter_norm_before.{parameter}"
    if twin not in ledger.given:
        raise PackageError(f"{ledger.where}: tensor {twin!r} is missing, and its copy {key.text!r} is there")
    if not torch.equal(ledger.given[twin], ledger.given[key.text]):
        raise PackageError(f"{ledger.where}: {key.text!r} should be a copy of {twin!r} and differs from it")
    ledger.ignore(key.text, f"a copy of {twin}")
