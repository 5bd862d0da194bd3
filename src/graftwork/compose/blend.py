"""New adapters and heads from averages of old ones' weights, under AdapterHub's names.

    average_adapter("ab", ["a", "b"])                                    Σ wᵢ·θᵢ, weights that sum to 1
    average_adapter("ab", {"a": 0.7, "b": 0.3}, combine_strategy="ties", density=0.2)
    average_adapter("ab", ["a", "b"], combine_strategy="lora_cat")       exactly the mean of what two LoRAs change

**Averaging weights is not averaging outputs.** up₁·f(down₁·x) and up₂·f(down₂·x) have no mean that their averaged
matrices would compute; nor have B₁A₁ and B₂A₂, of which "linear" makes ½(B₁+B₂)·½(A₁+A₂). The composition
`Average(a, b)` averages what adapters change, whatever they are; `lora_cat` does the same for LoRAs in one adapter.
What is made here is an ordinary adapter, to be judged by its scores.

Arithmetic is in float64 on the CPU; where a strategy trims or drops, it goes back to the weights at birth where these
are certain (norms, scales, biases, seeds), and to zero where they were random.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from graftwork.compose.claims import check_free
from graftwork.compose.parts import OUR_SEMANTICS, Parts
from graftwork.core.adapter import MethodConfig
from graftwork.core.backbone import Backbone
from graftwork.core.blend import SPARSE, concatenate, linear, truncate
from graftwork.core.kinds import write_config
from graftwork.core.lora import LoRA, LoRAConfig
from graftwork.core.options import at_layer, is_count, is_number
from graftwork.errors import AdapterError

NOTE = "the average of weights, which is not the average of outputs"

_CAT, _SVD, _NEGATE = "lora_cat", "lora_delta_w_svd", "lora_linear_only_negate_b"
STRATEGIES = ("linear", *SPARSE, _CAT, _SVD, _NEGATE)
# what does not change what weights mean
_AT_BIRTH = {"dropout", "stochastic_depth", "init_weights", "init_weights_seed", "init_std"}
_OF_RANK = {"r", "alpha", "use_rslora"}

Shares = list[tuple[str, float]]  # member, weight


def average_adapter(
    parts: Parts,
    backbone: Backbone,
    adapter_name: str,
    adapter_list: Sequence[str] | Mapping[str, float],
    weights: Sequence[float] | None = None,
    combine_strategy: str = "linear",
    normalize_weights: bool = True,
    overwrite_ok: bool = False,
    set_active: bool = False,
    svd_rank: int | None = None,
    *,
    density: float | None = None,
    seed: int = 0,
) -> str | None:
    """Add an adapter whose weights are an average of others'. That is not the average of their outputs.

    adapter_list: names, or names with weights. combine_strategy: linear; magnitude_prune, ties, dare, dare_ties, which
    keep the share `density` of the numbers (dare by `seed`); for LoRAs of any ranks lora_cat (exact, rank Σr) and
    lora_delta_w_svd (of rank `svd_rank`); for LoRAs lora_linear_only_negate_b. normalize_weights: weights become shares
    that sum to 1. Returns the name if it shall be active. Raises AdapterError; then nothing is changed.
    """
    check_free(parts, adapter_name, "adapters", overwrite_ok)
    shares = _shares(adapter_list, weights, normalize_weights)
    for name, _ in shares:
        parts.need_adapter(name)
    _check_options(combine_strategy, density, seed, svd_rank)
    if combine_strategy in (_CAT, _SVD):
        config, made = _of_changes(parts, backbone, shares, svd_rank)
    else:
        config = _common_config(parts, shares, _AT_BIRTH)
        if combine_strategy == _NEGATE:
            made = _negating(parts, shares, config)
        else:
            made = _of_weights(parts, backbone, shares, config, combine_strategy, density or 1.0, seed)
    origin = {
        "strategy": combine_strategy,
        "sources": [{"name": name, "weight": weight, "digest": parts.origins.get(name)} for name, weight in shares],
        **({} if density is None else {"density": density, "seed": seed}),
        "note": NOTE if combine_strategy not in (_CAT, _SVD) else "the average of changes of weights",
    }
    parts.add_adapter(adapter_name, config, backbone, _semantics(parts, shares))
    _fill(parts.tensors("adapters", adapter_name), made)
    parts.averages[adapter_name] = origin
    roles = {parts.roles.get(name) for name, _ in shares}
    if len(roles) == 1 and (role := roles.pop()):  # of language adapters it is one
        parts.roles[adapter_name] = role
    return adapter_name if set_active else None


def average_head(
    parts: Parts,
    backbone: Backbone,
    head_name: str,
    head_list: Sequence[str] | Mapping[str, float],
    weights: Sequence[float] | None = None,
    normalize_weights: bool = True,
    overwrite_ok: bool = False,
) -> None:
    """Add a head whose weights are Σ wᵢ·θᵢ of heads with the same layers and labels. Raises AdapterError.

    For heads of one linear layer that is the average of their logits; for deeper ones it is not.
    """
    check_free(parts, head_name, "heads", overwrite_ok)
    shares = _shares(head_list, weights, normalize_weights)
    for name, _ in shares:
        parts.head(name)
    configs = [replace(parts.head_configs[name], dropout=0.0) for name, _ in shares]
    for (name, _), config in zip(shares, configs, strict=True):
        if config != configs[0]:
            raise AdapterError(f"head {name!r} is not like {shares[0][0]!r}: {config} and {configs[0]}")
    if configs[0].kind == "custom" and not configs[0].custom:
        raise AdapterError(f"head {shares[0][0]!r} is a module of yours, of which no second one can be built")
    given = [parts.tensors("heads", name) for name, _ in shares]
    made = {key: _sum([one[key] for one in given], shares) for key in given[0]}
    parts.add_head(head_name, parts.head_configs[shares[0][0]], backbone)
    _fill(parts.tensors("heads", head_name), made)


def _shares(named: Sequence[str] | Mapping[str, float], weights: Sequence[float] | None, normalise: bool) -> Shares:
    if isinstance(named, str) or not named:
        raise AdapterError(f"{named!r} names nothing to average; give a list of names, or names with weights")
    if isinstance(named, Mapping):
        if weights is not None:
            raise AdapterError(f"weights are given twice: {dict(named)} and {list(weights)}")
        weights = list(named.values())
    numbers = [1 / len(named)] * len(named) if weights is None else list(weights)
    if len(numbers) != len(named) or not all(map(is_number, numbers)):
        raise AdapterError(f"weights {numbers} must be {len(named)} finite numbers, one for each of {list(named)}")
    total = math.fsum(numbers)
    if normalise and abs(total) < 1e-12:
        raise AdapterError(f"weights {numbers} sum to zero and cannot be made shares; pass normalize_weights=False")
    return [(name, number / total if normalise else float(number)) for name, number in zip(named, numbers, strict=True)]


def _check_options(strategy: str, density: float | None, seed: int, svd_rank: int | None) -> None:
    if strategy not in STRATEGIES:
        raise AdapterError(f"combine_strategy {strategy!r} is unknown; there are {', '.join(STRATEGIES)}")
    for given, name, meant in ((density, "density", strategy in SPARSE), (svd_rank, "svd_rank", strategy == _SVD)):
        if (given is not None) != meant:
            raise AdapterError(f"combine_strategy {strategy!r} {'needs' if meant else 'takes no'} {name}")
    if density is not None and not (is_number(density) and 0 < density <= 1):
        raise AdapterError(f"density {density!r} must be above 0 and at most 1: the share of numbers that is kept")
    if svd_rank is not None and (not is_count(svd_rank) or svd_rank == 0):
        raise AdapterError(f"svd_rank {svd_rank!r} must be a whole number from 1")
    if not is_count(seed, 2**32):
        raise AdapterError(f"seed {seed!r} must be a whole number from 0 to 2**32 - 1")


def _common_config(parts: Parts, shares: Shares, free: set[str]) -> MethodConfig:
    """The configuration of all members, which may differ in what is `free`. Raises AdapterError that names one."""
    (first, _), *others = shares
    own = _fixed(write_config(parts.adapter_configs[first]), free)
    for name, _ in others:
        other = _fixed(write_config(parts.adapter_configs[name]), free)
        if other != own:
            different = sorted(key for key in own.keys() | other.keys() if own.get(key) != other.get(key))
            raise AdapterError(
                f"adapter {name!r} is not of the kind of {first!r}: they differ in "
                + ", ".join(f"{key} ({own.get(key)!r}, {other.get(key)!r})" for key in different)
                + "; weights that mean different things have no average"
            )
    return parts.adapter_configs[first]


def _fixed(written: Any, free: set[str]) -> Any:
    if isinstance(written, Mapping):
        return {key: _fixed(value, free) for key, value in written.items() if key not in free}
    return [_fixed(value, free) for value in written] if isinstance(written, list) else written


def _semantics(parts: Parts, shares: Shares) -> str:
    """Whose reading the members have. Raises AdapterError where they differ."""
    found = {name: parts.semantics.get(("adapters", name), OUR_SEMANTICS) for name, _ in shares}
    if len(set(found.values())) > 1:
        raise AdapterError(f"adapters with different semantics have no average: {found}")
    return next(iter(found.values()))


def _of_weights(
    parts: Parts,
    backbone: Backbone,
    shares: Shares,
    config: MethodConfig,
    strategy: str,
    density: float,
    seed: int,
) -> dict[str, Tensor]:
    given = [parts.tensors("adapters", name) for name, _ in shares]
    weights = [weight for _, weight in shares]
    if strategy == "linear":
        return {key: _sum([one[key] for one in given], shares) for key in given[0]}
    origin = _birth(config, backbone)
    keys = list(given[0])
    vectors = [torch.cat([(_exact(one[key]) - origin[key]).flatten() for key in keys]) for one in given]
    sizes = [given[0][key].numel() for key in keys]
    merged = torch.split(SPARSE[strategy](vectors, weights, density, seed), sizes)
    return {key: origin[key] + change.view_as(origin[key]) for key, change in zip(keys, merged, strict=True)}


def _birth(config: MethodConfig, backbone: Backbone) -> dict[str, Tensor]:
    """The weights of an adapter before training where they are certain, zero where they are drawn."""
    born = []
    with torch.random.fork_rng(devices=[]):
        for seed in (0, 1):
            torch.manual_seed(seed)
            scratch = Parts()
            scratch.add_adapter("scratch", config, backbone)
            born.append(scratch.tensors("adapters", "scratch"))
    one, other = born
    return {key: _exact(one[key]) if torch.equal(one[key], other[key]) else 0 * _exact(one[key]) for key in one}


def _negating(parts: Parts, shares: Shares, config: MethodConfig) -> dict[str, Tensor]:
    """A: Σ |wᵢ|·Aᵢ, B: Σ wᵢ·Bᵢ, so that a negative weight takes a change away (Zhang et al. 2023, 2306.14870)."""
    made: dict[str, Tensor] = {}
    for site, modules in _loras(parts, shares, _NEGATE).items():
        made[f"{site}/a"] = _sum([one.a for one in modules], [(name, abs(weight)) for name, weight in shares])
        made[f"{site}/b"] = _sum([one.b for one in modules], shares)
    return made


def _of_changes(
    parts: Parts, backbone: Backbone, shares: Shares, svd_rank: int | None
) -> tuple[MethodConfig, dict[str, Tensor]]:
    """LoRAs of any ranks and scales: the mean of their changes, exactly or of one rank."""
    strategy = _CAT if svd_rank is None else _SVD
    found = _loras(parts, shares, strategy)
    common = cast(LoRAConfig, _common_config(parts, shares, _AT_BIRTH | _OF_RANK))
    sites = {site.name: site for site in backbone.sites}
    if svd_rank is not None:
        config = replace(common, r=svd_rank, alpha=svd_rank, use_rslora=False)
    else:
        ranks = [cast(LoRAConfig, parts.adapter_configs[name]).r for name, _ in shares]
        depths = sorted({sites[name].depth: sites[name] for name in found}.items())
        by_layer = {str(depth): sum(int(at_layer("r", rank, site)) for rank in ranks) for depth, site in depths}
        whole = all(isinstance(rank, int) for rank in ranks)
        total = next(iter(by_layer.values()))
        config = replace(common, r=total if whole else by_layer, alpha=total, use_rslora=False)
    made: dict[str, Tensor] = {}
    for name, modules in found.items():
        pairs = [(_exact(one.a), _exact(one.b)) for one in modules]
        scaled = [weight * one.scale for one, (_, weight) in zip(modules, shares, strict=True)]
        a, b = concatenate(pairs, scaled)
        a, b = (a, b) if svd_rank is None else truncate(a, b, svd_rank)
        made[f"{name}/a"], made[f"{name}/b"] = a, b / config.scale(sites[name])
    return config, made


def _loras(parts: Parts, shares: Shares, strategy: str) -> dict[str, list[LoRA]]:
    """Site -> the module of each member. Raises AdapterError for what is no LoRA, has a gate, or goes elsewhere."""
    each: list[dict[str, nn.Module]] = [parts.modules_of("adapters", name) for name, _ in shares]
    for (name, _), modules in zip(shares, each, strict=True):
        plain = all(isinstance(one, LoRA) and one.gate is None for one in modules.values())
        if not plain:
            config = parts.adapter_configs[name]
            gated = ", with a gate" if config.kind == "lora" else ""
            raise AdapterError(f"combine_strategy {strategy!r} is for plain LoRAs; {name!r} is {config.kind}{gated}")
        if modules.keys() != each[0].keys():
            sites = ", ".join(sorted(modules.keys() ^ each[0].keys())[:4])
            raise AdapterError(f"LoRA {name!r} goes to other places than {shares[0][0]!r}: {sites}")
    return {site: [cast(LoRA, modules[site]) for modules in each] for site in each[0]}


def _exact(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float64)


def _sum(tensors: Sequence[Tensor], shares: Shares) -> Tensor:
    return linear([_exact(tensor) for tensor in tensors], [weight for _, weight in shares])


def _fill(targets: Mapping[str, Tensor], made: Mapping[str, Tensor]) -> None:
    assert targets.keys() == made.keys()
    with torch.no_grad():
        for key, target in targets.items():
            target.copy_(made[key])
