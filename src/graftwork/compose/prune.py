"""Pruning a fusion by its measured attention (AdapterDrop, Rücklé et al. 2021, §5): a few members a site stay.

    αᵢ = softmaxᵢ over the members that are kept at this site: the attention over all of them, renormalised

What a member gets is the mean of its attention over the real tokens of some rows, measured by the reference executor:
per site, and apart for the rows of each label. The members that are kept differ from site to site; those that are not
are not computed there. A pruned fusion has the weights of the whole one, so it can be pruned again, and unpruned by
adding the whole one.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor

from graftwork.compose.claims import check_free
from graftwork.compose.execute import Routed
from graftwork.compose.forward import run
from graftwork.compose.grammar import as_composition
from graftwork.compose.legacy import marked, program
from graftwork.compose.parts import OUR_SEMANTICS, Parts
from graftwork.compose.plan import Plan
from graftwork.compose.route import route
from graftwork.compose.tree import BatchSplit, Composition, Fuse, Parallel, Split, fusions, has, show
from graftwork.core.adapter import Adapter
from graftwork.core.backbone import Backbone
from graftwork.core.fusion import Fusion, FusionConfig
from graftwork.core.hooks import Runtime
from graftwork.core.quirks import View
from graftwork.errors import AdapterError


@dataclass(frozen=True)
class FusionAttention:
    """How much each member of a fusion was attended to: at every site the mean over its real tokens, which sums to 1.

    sites: site name -> one share a member, in the order of `members`. labels: the same over the rows, or the tokens, of
    each label. tokens: how many the first site saw. entropy: site name -> the mean over tokens of -Σᵢ αᵢ log αᵢ by
    log K, 1 where every token attends to all K members alike; shares can be equal though each token has its own.
    """

    fusion: str
    members: tuple[str, ...]
    sites: Mapping[str, tuple[float, ...]]
    labels: Mapping[int, Mapping[str, tuple[float, ...]]]
    tokens: int
    entropy: Mapping[str, float] = field(default_factory=dict)

    def told(self, labels: Sequence[str]) -> dict[str, Any]:
        """As plain data, labels by their names: {"members", "tokens", "sites", "entropy", "labels": label -> sites}."""
        return {
            "members": list(self.members),
            "tokens": self.tokens,
            "sites": {site: list(shares) for site, shares in self.sites.items()},
            "entropy": dict(self.entropy),
            "labels": {
                labels[label]: {site: list(shares) for site, shares in sites.items()}
                for label, sites in self.labels.items()
            },
        }

    def most(self, keep: int) -> dict[str, tuple[int, ...]]:
        """The places of the `keep` most attended members at every site, in order; of equal ones the first.

        Raises AdapterError for a number that is not from 1 to the number of members.
        """
        count = len(self.members)
        if not 1 <= keep <= count:
            raise AdapterError(f"keep is {keep}; fusion {self.fusion!r} has {count} members, so keep 1 to {count}")
        return {
            site: tuple(sorted(sorted(range(count), key=lambda member: -shares[member])[:keep]))
            for site, shares in self.sites.items()
        }


def fusion_attention(
    parts: Parts, backbone: Backbone, name: str, batches: Iterable[Mapping[str, Tensor]], adapters: Any = None
) -> FusionAttention:
    """How much a fusion attends to each of its members, over batches of inputs as `forward` takes them, (B, T).

    adapters: the composition that it is in; left out, the fusion alone. Labels in a batch are class numbers, (B,) or
    (B, T), negative ones left out, and get their own means. Nothing is kept of a batch but sums. Raises AdapterError
    for a name that is no fusion or is not in the composition, while the model trains, and without any real token.
    """
    tree = _composition(parts, name, adapters)
    heard = _Heard(parts, backbone.runtime, name)
    routed = route(None, tree, 1, lambda one: program(one, len(backbone.sites), heard))
    plan = Plan(Routed(routed), None, (tree,), 1)
    for batch in batches:
        inputs = dict(batch)
        heard.labels = inputs.pop("labels", None)
        with torch.no_grad():
            run(backbone, plan, inputs, {})
    sums = {backbone.sites[site].name: own for site, own in heard.sums.items()}
    if not sums:
        raise AdapterError(f"nothing was measured of fusion {name!r}: there was no batch")
    first = next(iter(sums.values()))

    def means(label: int | None) -> dict[str, tuple[float, ...]]:
        return {site: tuple((own[label][2:] / own[label][0]).tolist()) for site, own in sums.items()}

    labels = {label: means(label) for label in sorted(label for label in first if label is not None)}
    members = tuple(map(show, parts.fusion_records[name].tree.children))
    entropy = {site: float(own[None][1] / own[None][0]) for site, own in sums.items()}
    return FusionAttention(name, members, means(None), labels, int(first[None][0]), entropy)


def prune_fusion(
    parts: Parts,
    backbone: Backbone,
    attention: FusionAttention,
    keep: int = 2,
    *,
    name: str | None = None,
) -> str:
    """Add a fusion over the same members that attends, at each site, to the `keep` most attended of them; its name.

    It begins with the weights of the whole one, and with its head under the new name; frozen, until it is trained.
    name: left out, `<fusion>-<keep>`. Raises AdapterError for what `most` refuses, a fusion that is not the one that
    was measured, and a name in use.
    """
    old, chosen = attention.fusion, attention.most(keep)
    record = parts.fusion_records.get(old)
    if record is None or tuple(map(show, record.tree.children)) != attention.members:
        raise AdapterError(f"no fusion {old!r} over {', '.join(attention.members)} is here; measure one that is")
    new = Fuse(*record.tree.children, name=name or f"{old}-{keep}".replace(",", "-"))
    check_free(parts, new.name, "fusions", overwrite_ok=False)
    parts.add_fusion(new, record.config, backbone, parts.semantics.get(("fusions", old), OUR_SEMANTICS))
    keep_members(parts, new.name, chosen)
    _copy(parts, "fusions", old, new.name)
    if old in parts.head_configs and new.name not in parts.head_configs and not parts.head_configs[old].custom:
        parts.add_head(new.name, parts.head_configs[old], backbone)
        _copy(parts, "heads", old, new.name)
    return new.name


def keep_members(parts: Parts, name: str, kept: Mapping[str, tuple[int, ...]]) -> None:
    """Let a fusion attend to some of its members at some sites: site name -> their places in its composition.

    Raises AdapterError for a site where it has no layer, and places that are not its members' once each and in order.
    """
    record, modules = parts.fusion_records[name], parts.modules_of("fusions", name)
    count = len(record.tree.children)
    for site, members in kept.items():
        if site not in modules:
            raise AdapterError(f"fusion {name!r} keeps members at {site!r}, where it has no layer")
        if not members or list(members) != sorted(set(members)) or not 0 <= members[0] <= members[-1] < count:
            raise AdapterError(
                f"fusion {name!r} keeps the members {list(members)} at {site}; they must be some of 0 to {count - 1}, "
                "each once and in order"
            )
    for site, module in modules.items():
        cast(Fusion, module).kept = tuple(kept[site]) if site in kept else None
    parts.fusion_records[name] = replace(record, kept=dict(kept))


def _composition(parts: Parts, name: str, adapters: Any) -> Composition:
    record = parts.fusion_records.get(name)
    if record is None:
        raise AdapterError(f"no fusion {name!r}; the fusions are: {', '.join(parts.fusion_records) or 'none yet'}")
    if parts.training:
        raise AdapterError("attention is measured as the model answers: call eval() first")
    if any(len(kept) < len(record.tree.children) for kept in record.kept.values()):
        raise AdapterError(f"fusion {name!r} is pruned: measure the whole one, which attends to every member")
    tree = record.tree if adapters is None else as_composition(adapters)
    parts.check(tree)
    if name not in {fuse.name for fuse in fusions(tree)}:
        raise AdapterError(f"{show(tree)} does not hold fusion {name!r}")
    if any(has(tree, router) for router in (Parallel, BatchSplit, Split)):
        raise AdapterError(f"{show(tree)} sends rows or tokens apart; measure the part that holds fusion {name!r}")
    return marked(tree) if parts.as_adapters(tree) else tree


def _copy(parts: Parts, table: str, old: str, new: str) -> None:
    there = parts.tensors(table, new)
    with torch.no_grad():
        for key, tensor in parts.tensors(table, old).items():
            there[key].copy_(tensor)
    for module in parts.modules_of(table, new).values():
        module.requires_grad_(False)


class _Heard:
    """The modules of a model with one of its fusions listened to. labels: of the batch that runs, (B,) or (B, T)."""

    def __init__(self, parts: Parts, runtime: Runtime, name: str) -> None:
        self.parts, self.runtime, self.name = parts, runtime, name
        self.labels: Tensor | None = None
        # site -> label, None for all -> sums over tokens, float64: 1, the entropy, what each of K members got, (2 + K,)
        self.sums: dict[int, dict[int | None, Tensor]] = {}

    def adapter(self, name: str, site: int) -> Adapter | None:
        """As `Parts.adapter`."""
        return self.parts.adapter(name, site)

    def fusion(self, name: str, site: int) -> Fusion | None:
        """As `Parts.fusion`; the one that is listened to tells what it attends to."""
        found = self.parts.fusion(name, site)
        return cast(Fusion, _Listener(found, site, self)) if found is not None and name == self.name else found

    def as_adapters(self, tree: Composition) -> bool:
        """As `Parts.as_adapters`."""
        return self.parts.as_adapters(tree)

    def view(self, site: int) -> View | None:
        """As `Parts.view`."""
        return self.parts.view(site)

    def counts_prefixes(self) -> bool:
        """As `Parts.counts_prefixes`."""
        return self.parts.counts_prefixes()

    def hear(self, site: int, weights: Tensor) -> None:
        """Add what was attended to, (B, T, K), at the real tokens."""
        mask, own = self.runtime.mask, self.sums.setdefault(site, {})
        real = torch.ones_like(weights[..., 0]) if mask is None else mask.to(weights).expand(weights.shape[:2])
        weights, real = weights.cpu().double(), real.cpu()  # not every accelerator has float64
        weights = weights / weights.sum(-1, keepdim=True)  # a softmax in bfloat16 sums to 1 by three digits
        entropy = torch.special.entr(weights).sum(-1, keepdim=True) / math.log(max(weights.shape[-1], 2))
        heard = torch.cat([torch.ones_like(entropy), entropy, weights], dim=-1)  # (B, T, 2 + K)
        asked = {None: real.double()}
        if self.labels is not None:
            labels = self.labels.to(real.device)
            labels = labels if labels.dim() == 2 else labels[:, None]
            asked |= {label: real.double() * (labels == label) for label in torch.unique(labels).tolist() if label >= 0}
        for label, counted in asked.items():
            sums = torch.einsum("bt,btk->k", counted, heard).cpu()
            own[label] = own[label] + sums if label in own else sums


@dataclass(frozen=True)
class _Listener:
    """A fusion layer that tells what it attends to."""

    fusion: Fusion
    site: int
    heard: _Heard

    @property
    def config(self) -> FusionConfig:
        return self.fusion.config

    def attended(self, members: Any) -> Any:
        return self.fusion.attended(members)

    def __call__(self, x: Tensor, changes: list[Tensor], residual: Tensor | None = None) -> Tensor:
        own = next((parameter.dtype for parameter in self.fusion.parameters()), changes[0].dtype)
        self.heard.hear(self.site, self.fusion.weights(x.to(own), torch.stack(changes, dim=2).to(own)))
        return cast(Tensor, self.fusion(x, changes, residual))
