"""What has been added to one backbone: adapters, fusions, heads and embeddings, each under its name.

The only trainable modules of a model live here, so `state_dict()` of this container is what a checkpoint holds. Names
may contain dots and may equal attributes of torch modules, so a name is quoted into its key and never searched for.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from graftwork.compose.needs import check_needs
from graftwork.compose.order import check_order
from graftwork.compose.records import FusionRecord
from graftwork.compose.tree import Composition, Fuse, fusions, leaves, show
from graftwork.core.adapter import Adapter, MethodConfig, uses_of
from graftwork.core.backbone import Backbone
from graftwork.core.fusion import Fusion, FusionConfig
from graftwork.core.heads import Head, HeadConfig
from graftwork.core.heads_custom import CustomHead, Factory
from graftwork.core.heads_facts import width_of
from graftwork.core.heads_table import build_head
from graftwork.core.merge import Kept
from graftwork.core.quirks import COUNTS_PREFIXES, View
from graftwork.core.site import EVERYTHING, Site, Uses
from graftwork.errors import AdapterError

OUR_SEMANTICS = "graftwork-1"
_WHOLE = {"heads": "head", "embeddings": "embeddings"}  # what a part is called that is at no site
SHARED = "shared"  # where the parameters are that all sites of one adapter have in common


def _key(name: str) -> str:
    return "=" + name.replace("%", "%25").replace(".", "%2E")


class Parts(nn.Module):
    """Adapters, fusions and heads of one backbone, placed where their layers are."""

    def __init__(self) -> None:
        super().__init__()
        self.adapters = nn.ModuleDict()
        self.fusions = nn.ModuleDict()
        self.heads = nn.ModuleDict()
        self.embeddings = nn.ModuleDict()
        self.adapter_configs: dict[str, MethodConfig] = {}
        self.fusion_records: dict[str, FusionRecord] = {}
        self.head_configs: dict[str, HeadConfig] = {}
        self.vocabularies: dict[str, str | None] = {}  # embeddings -> digest of their vocabulary, where it is known
        self.active_embeddings = "default"  # those of calls that name none
        self.custom_heads: dict[str, Factory] = {}  # registered name -> what makes such a head
        self.origins: dict[str, str] = {}  # adapter -> digest of the package it came from, while unchanged
        self.roles: dict[str, str] = {}  # adapter -> what it was trained for, "task" or "language", where it is known
        self.semantics: dict[tuple[str, str], str] = {}  # (table, name) -> whose reading, where it is not our own
        self._views: dict[int, View | None] = {}  # site index -> how `adapters` reads it
        self._counts_prefixes = False
        self.averages: dict[str, Mapping[str, Any]] = {}  # adapter -> what it began as the average of
        self.merged: tuple[str, Kept] | None = None  # the adapter that is in the base's weights, and what they were
        self._sites: dict[tuple[str, str], dict[int, nn.Module]] = {}  # (table, name) -> site index -> module

    def add_adapter(self, name: str, config: MethodConfig, backbone: Backbone, semantics: str = OUR_SEMANTICS) -> None:
        """Build an adapter at every site that its configuration wants. Raises AdapterError when there is none."""
        self.need_unmerged(f"adapter {name!r} cannot be added")
        check_needs(name, config, backbone)
        modules: dict[Site, nn.Module] = {}
        shared = config.share(backbone.sites)
        for site in backbone.sites:
            module = config.build(site, backbone.ground(site, shared))
            if module is not None:
                modules[site] = _placed(module, backbone, site)
        if not modules:
            kinds = ", ".join(dict.fromkeys(site.kind for site in backbone.sites))
            raise AdapterError(
                f"adapter {name!r} would have no module at all: {config.kind} goes to {config.where}, the model has "
                f"sites of kind {kinds} in {backbone.layers} layers, and the configuration leaves out "
                f"{list(config.leave_out)}"
            )
        if shared is not None:
            _placed(shared, backbone, next(iter(modules)))
        for site, module in modules.items():
            backbone.open(site, uses_of(module) if semantics == OUR_SEMANTICS else EVERYTHING)
        self.store("adapters", name, modules, shared)
        self._read_as("adapters", name, semantics, backbone)
        self.adapter_configs[name] = config

    def add_fusion(self, tree: Fuse, config: FusionConfig, backbone: Backbone, semantics: str = OUR_SEMANTICS) -> None:
        """Build a fusion at every site where all members have a module. Raises AdapterError when there is none.

        `adapters` fuses bottlenecks only, and in every layer alike: also where a member is left out.
        """
        for member in leaves(tree):
            self.need_adapter(member)
        ours = semantics == OUR_SEMANTICS
        sites = [s for s in backbone.sites if s.place == "sublayer" or (ours and s.place not in ("kv", "prompt"))]
        shared = [  # what lengthens is not attended to (`compose/lengthen.py`)
            site
            for site in sites
            if all(any(self.adapter(n, site.index) for n in leaves(child)) for child in tree.children)
        ]
        kinds = {site.kind for site in shared}
        chosen = shared if ours else [site for site in sites if site.kind in kinds]
        modules = {site: _placed(Fusion(site.width, config), backbone, site) for site in chosen}
        if not modules:
            raise AdapterError(f"{show(tree)}: the members share no site, so there is nothing to fuse")
        parts = config.query_before_ln or config.residual_before
        for site in modules:
            backbone.open(site, Uses(parts=parts, after=False) if ours else EVERYTHING)
        self.store("fusions", tree.name, modules)
        self.fusion_records[tree.name] = FusionRecord(show(tree), config)
        self._read_as("fusions", tree.name, semantics, backbone)

    def _read_as(self, table: str, name: str, semantics: str, backbone: Backbone) -> None:
        if semantics == OUR_SEMANTICS:
            return
        self.semantics[table, name] = semantics
        self._counts_prefixes = backbone.config.model_type in COUNTS_PREFIXES
        for site in backbone.sites:
            self._views[site.index] = backbone.view(site)

    def as_adapters(self, tree: Composition) -> bool:
        """Whether a composition is to be read as `adapters` 1.3.0 reads it: a part of it was trained there.

        An adapter alone is not, where that library reads the sites of this model as they are.
        """
        if isinstance(tree, str) and not self._counts_prefixes and not any(self._views.values()):
            return False
        parts = [*(("adapters", name) for name in leaves(tree)), *(("fusions", fuse.name) for fuse in fusions(tree))]
        return any(part in self.semantics for part in parts)

    def view(self, site: int) -> View | None:
        """How `adapters` reads a site, or None where it reads it as it is."""
        return self._views.get(site)

    def counts_prefixes(self) -> bool:
        """Whether relative positions of `adapters` count prefixes on this model."""
        return self._counts_prefixes

    def add_head(self, name: str, config: HeadConfig, backbone: Backbone, module: nn.Module | None = None) -> None:
        """Build a head on the trunk's last hidden state, where the last layer is; `module`: a custom one, built.

        Raises AdapterError for sizes that do not fit the base.
        """
        width = width_of(backbone.config)
        if module is None:
            head = build_head(config, width, backbone.model.get_input_embeddings, self.custom_heads)
        else:
            head = CustomHead(module, config)
        self.store("heads", name, {None: _placed(head, backbone, backbone.last)})
        self.head_configs[name] = config

    def store(self, table: str, name: str, modules: Mapping[Any, nn.Module], shared: nn.Module | None = None) -> None:
        """Put modules by site in the place of a part; its record is the caller's."""
        self.remove(table, name)
        own = nn.ModuleDict() if shared is None else nn.ModuleDict({_key(SHARED): shared})
        for site, module in modules.items():
            own[_key(site.name if site else _WHOLE[table])] = module
            self._sites.setdefault((table, name), {})[site.index if site else -1] = module
        getattr(self, table)[_key(name)] = own.train(self.training)

    def remove(self, table: str, name: str) -> None:
        """Forget a part; nothing happens where there is none. Raises AdapterError for an adapter that is merged."""
        if (table, name) == ("adapters", self.inside):
            self.need_unmerged(f"adapter {name!r} cannot be removed")
        own = getattr(self, table)
        if _key(name) in own:
            del own[_key(name)]
        self._sites.pop((table, name), None)
        self.records(table).pop(name, None)
        self.semantics.pop((table, name), None)
        if table == "adapters":
            self.origins.pop(name, None)
            self.averages.pop(name, None)
            self.roles.pop(name, None)

    def records(self, table: str) -> dict[str, Any]:
        """Name -> configuration of every part in "adapters", "fusions", "heads" or "embeddings"."""
        tables: dict[str, dict[str, Any]] = {
            "adapters": self.adapter_configs, "fusions": self.fusion_records, "heads": self.head_configs,
            "embeddings": self.vocabularies,
        }  # fmt: skip
        return tables[table]

    def adapter(self, name: str, site: int) -> Adapter | None:
        """The module of an adapter at a site, None where it has none there. Raises AdapterError for an unknown name."""
        self.need_adapter(name)
        return cast("Adapter | None", self._sites["adapters", name].get(site))

    def fusion(self, name: str, site: int) -> Fusion | None:
        """The layer of a fusion at a site, None where it has none there."""
        return cast("Fusion | None", self._sites.get(("fusions", name), {}).get(site))

    def head(self, name: str) -> Head:
        """A head by name. Raises AdapterError that lists the heads."""
        found = self._sites.get(("heads", name), {}).get(-1)
        if found is None:
            raise AdapterError(f"no head {name!r}; the heads are: {_listed(self.head_configs)}")
        return cast(Head, found)

    def need_adapter(self, name: str) -> None:
        """Raise AdapterError, listing the adapters, unless there is one of that name."""
        if name not in self.adapter_configs:
            raise AdapterError(f"no adapter {name!r}; the adapters are: {_listed(self.adapter_configs)}")

    @property
    def inside(self) -> str | None:
        """The adapter that is merged into the base's weights, which then compute what it would; or None."""
        return None if self.merged is None else self.merged[0]

    def need_unmerged(self, what: str) -> None:
        """Raise AdapterError while the base's weights are not its own."""
        if self.inside is not None:
            raise AdapterError(
                f"{what}: adapter {self.inside!r} is merged into the base, whose weights are not its own until "
                "reset_adapter() is called"
            )

    def check(self, tree: Composition) -> None:
        """Raise AdapterError unless every adapter and fusion of the composition is here, members in trained order, and
        CompositionError for a language adapter on one of a task."""
        check_order(tree, self.roles.get)
        for name in leaves(tree):
            self.need_adapter(name)
        for fuse in fusions(tree):
            record = self.fusion_records.get(fuse.name)
            if record is None:
                raise AdapterError(
                    f"no fusion {fuse.name!r} for {show(fuse)}; add one with add_adapter_fusion. "
                    f"The fusions are: {_listed(self.fusion_records)}"
                )
            if record.tree.children != fuse.children:
                raise AdapterError(f"fusion {fuse.name!r} was made for {record.composition}, not for {show(fuse)}")

    def sites_of(self, table: str, name: str) -> tuple[str, ...]:
        """The sites of a part that hold parameters, "shared" among them."""
        return tuple(
            site for site, module in self.modules_of(table, name).items() if any(True for _ in module.parameters())
        )

    def modules_of(self, table: str, name: str) -> dict[str, nn.Module]:
        """Site name -> module of one part ("head" -> module for a head; "shared" -> what the sites have in common)."""
        own = cast(nn.ModuleDict, getattr(self, table)[_key(name)])
        return {key[1:].replace("%2E", ".").replace("%25", "%"): module for key, module in own.items()}

    def tensors(self, table: str, name: str) -> dict[str, Tensor]:
        """Every parameter of a part by `<site>/<parameter>` (a head: `<parameter>`)."""
        tensors: dict[str, Tensor] = {}
        for site, module in self.modules_of(table, name).items():
            prefix = "" if table in _WHOLE else f"{site}/"
            tensors |= {f"{prefix}{key}": value.detach() for key, value in module.named_parameters()}
        return tensors

    def count(self, table: str, name: str) -> int:
        """How many parameters a part has."""
        return sum(tensor.numel() for tensor in self.tensors(table, name).values())

    def train_only(self, chosen: Iterable[tuple[str, str]]) -> None:
        """Let exactly the parts (table, name) receive gradients, but what a module lists as `frozen`.

        Raises AdapterError while an adapter is merged.
        """
        self.need_unmerged("nothing can be trained")
        self.requires_grad_(False)
        for table, name in chosen:
            for module in getattr(self, table)[_key(name)].modules():
                for key, parameter in module.named_parameters(recurse=False):
                    parameter.requires_grad_(key not in getattr(module, "frozen", ()))
            if table == "adapters":
                self.origins.pop(name, None)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As torch's; an adapter whose weights change is no longer that of the package it came from."""
        self.need_unmerged("no weights can be loaded")
        for name in list(self.origins):
            own = self.adapters[_key(name)].state_dict(prefix=f"adapters.{_key(name)}.")
            if any(key in state_dict and not torch.equal(state_dict[key].to(t), t) for key, t in own.items()):
                del self.origins[name]
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    def fusion_penalty(self, used: Sequence[Composition], without: Collection[str] = ()) -> Tensor | None:
        """The summed regulariser of those fusions in use that train, or None; of the sites `without`, none."""
        names = {fuse.name for tree in used for fuse in fusions(tree)}
        penalties = [
            penalty
            for name in sorted(names)
            for site, module in self.modules_of("fusions", name).items()
            if site not in without
            if (value := cast(Fusion, module).value) is not None and value.weight.requires_grad
            if (penalty := cast(Fusion, module).penalty()) is not None
        ]
        return torch.stack([p.to(penalties[0].device) for p in penalties]).sum() if penalties else None


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none yet"


def _placed(module: nn.Module, backbone: Backbone, site: Site) -> nn.Module:
    device, dtype = backbone.placement(site)
    return module.to(device=device, dtype=dtype)
