"""AdapterHub's ReFT and prompt tuning.

    units.0 -> prefix, units.1 -> suffix      learned_source -> source      projection -> projection (r, D)

An orthogonal projection is stored as torch parametrises it: reflectors X and a base Q₀; what is used is Q₀·Q(X), and
that is what we keep. A file cannot say whether the projection is subtracted, h + (W h + b - R h) R, or not,
h + (W h + b) R: the flag was never written, so AdapterHub itself reloads a DiReFT as a NoReFT. An orthogonal one is
LoReFT; for the others the caller decides, and NoReFT is assumed, as AdapterHub does.
"""

from collections.abc import Mapping
from typing import Any

import torch

from graftwork.errors import PackageError
from graftwork.registry.foreign.imported import Ledger
from graftwork.registry.foreign.keys import Key
from graftwork.registry.foreign.places import Layout

REFT: dict[str, Any] = {
    "layers": "all",
    "prefix_positions": 3,
    "suffix_positions": 0,
    "r": 1,
    "orthogonality": True,
    "tied_weights": False,
    "dropout": 0.05,
    "non_linearity": None,
    "subtract_projection": True,
    "init_weights_seed": None,
}
PROMPT: dict[str, Any] = {
    "prompt_length": 10,
    "prompt_init": "random_uniform",
    "prompt_init_text": None,
    "random_uniform_scale": 0.5,
    "combine": "prefix",
    "init_weights_seed": None,
}
_SIDES = {"0": "prefix", "1": "suffix"}


def reft_config(written: Mapping[str, Any], subtract: bool | None, where: str, notes: list[str]) -> dict[str, Any]:
    """Our configuration from AdapterHub's; `subtract` says what the file cannot. Raises PackageError."""
    config = _filled(written, REFT, ("dtype", "output_reft"), where, "ReFT")
    if "subtract_projection" not in written:
        config["subtract_projection"] = True if subtract is None else subtract
        if subtract is None and not config["orthogonality"]:
            notes.append(
                "a ReFT without orthogonality is NoReFT or DiReFT, and AdapterHub's file does not say which: NoReFT "
                "was assumed; for a DiReFT import it again with subtract_projection=False"
            )
    elif subtract is not None and subtract != config["subtract_projection"]:
        raise PackageError(f"{where}: says subtract_projection {config['subtract_projection']}, not {subtract}")
    return {"kind": "reft", **config}


def prompt_config(written: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Our configuration from AdapterHub's. Raises PackageError for an unknown field."""
    return {"kind": "prompt_tuning", **_filled(written, PROMPT, (), where, "a prompt")}


def _filled(
    written: Mapping[str, Any], defaults: Mapping[str, Any], silent: tuple[str, ...], where: str, what: str
) -> dict[str, Any]:
    config = dict(defaults)
    for key, value in written.items():
        if key == "architecture" or key in silent:
            continue
        if key not in config:
            raise PackageError(f"{where}: unknown field {key!r} of {what}, with value {value!r:.80}")
        config[key] = value
    return config


def read_reft(ledger: Ledger, keys: list[Key], config: Mapping[str, Any], layout: Layout) -> None:
    """Take every tensor of a ReFT, each projection as the matrix it stands for. Raises PackageError.

    AdapterHub stores a unit for positions that are never edited; such a one is left out.
    """
    used = {"prefix": config["prefix_positions"] or config["tied_weights"], "suffix": config["suffix_positions"]}
    for key in keys:
        site = layout.site(key.place) if key.collection == "refts" else None
        unit, _, leaf = key.leaf.removeprefix("units.").partition(".")
        if site is None or unit not in _SIDES:
            continue
        if not used[_SIDES[unit]]:
            ledger.ignore(key.text, f"never used: {_SIDES[unit]}_positions is 0")
            continue
        target = f"adapter/{site}/{_SIDES[unit]}"
        if leaf in ("learned_source.weight", "learned_source.bias"):
            ledger.take(key.text, f"{target}.source.{leaf.rpartition('.')[2]}")
        elif leaf == "projection.weight":
            ledger.take(key.text, f"{target}.projection")
        elif leaf == "projection.parametrizations.weight.original":
            base = key.text.removesuffix("original") + "0.base"
            if base not in ledger.given:
                raise PackageError(f"{ledger.where}: {base!r} is missing beside {key.text!r}")
            matrix = orthogonal(ledger.given[key.text], ledger.given[base])
            ledger.fold([key.text, base], f"{target}.projection", matrix, "folded: the orthogonal matrix it stands for")


def read_prompt(ledger: Ledger, keys: list[Key], layout: Layout) -> None:
    """Take the one tensor of a prompt."""
    for key in keys:
        if key.collection == "prompts" and key.leaf == "prompt_embedding.weight" and layout.is_root(key.place):
            ledger.take(key.text, f"adapter/{layout.prompt_site}/embedding")


def orthogonal(stored: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    """The matrix (r, D) that torch's orthogonal parametrisation makes of its stored tensor (r, D) and base (D, D).

    Householder reflectors below the diagonal and signs on it, or for a square matrix the exponential of its
    skew-symmetric part (torch's two defaults).
    """
    tall = stored.mT if stored.shape[-2] < stored.shape[-1] else stored
    if tall.shape[-2] == tall.shape[-1]:
        lower = tall.tril()
        rotation = torch.matrix_exp(lower - lower.mT)
    else:
        reflectors = tall.tril(diagonal=-1)
        tau = 2.0 / (1.0 + (reflectors * reflectors).sum(dim=-2))
        signs = tall.diagonal(dim1=-2, dim2=-1).int()
        rotation = torch.linalg.householder_product(reflectors, tau) * signs.unsqueeze(-2)
    made = base @ rotation
    return made.mT if tall is not stored else made
