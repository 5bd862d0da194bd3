"""AdapterModel: the object people hold. One frozen backbone with adapters, fusions and heads, and a route per call.

    model = AutoAdapterModel.from_pretrained("bert-base-uncased")
    model.add_adapter("sst-2", config="seq_bn")
    model.add_classification_head("sst-2", num_labels=2)
    model.train_adapter("sst-2")
    model(input_ids, attention_mask, adapters=["sst-2", None], head="sst-2")

What a call does depends on its arguments: `set_active_adapters` only sets the default of `adapters=`, which is resolved to
an explicit route before the forward starts. The base's weights are never changed.
"""

import enum
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from graftwork.compose.answer import answer, head_of
from graftwork.compose.grammar import as_composition, as_fuse
from graftwork.compose.parts import Parts
from graftwork.compose.plan import NO_HEAD, Plan, Planner
from graftwork.compose.tree import Composition, check_name, fusions, leaves, top
from graftwork.core.backbone import Backbone, load_model
from graftwork.core.families import Family
from graftwork.core.fusion import FUSIONS, FusionConfig
from graftwork.core.heads import HeadConfig
from graftwork.core.kinds import MethodConfig, read_config
from graftwork.errors import AdapterError
from graftwork.packing import Provenance, install, pack
from graftwork.registry.package import Package, read, write
from graftwork.summary import Summary, summarise

Setup: TypeAlias = Composition | Sequence[Any]  # a composition in any spelling that `as_composition` reads


class Default(enum.Enum):
    """What `adapters=` means when it is left out."""

    ACTIVE = "the active setup"


class AdapterModel(nn.Module):
    """A frozen transformers model with adapters. `family` describes the sites of a model that has no row of its own.

    Raises BackboneError for a model whose sites are not known.
    """

    accepts_loss_kwargs = False  # our losses are means: Trainer divides by the accumulation steps itself

    def __init__(self, model: PreTrainedModel, family: Family | None = None) -> None:
        super().__init__()
        self.backbone = Backbone(model, family)
        self.base = model
        self.parts = Parts()
        self._planner = Planner(self.parts, len(self.backbone.sites))
        self._active: Composition = None
        self._active_head: str | None = None
        self.train(model.training)

    # -- adding and removing ------------------------------------------------------------------------------------------

    def add_adapter(
        self,
        name: str,
        config: str | Mapping[str, Any] | MethodConfig = "seq_bn",
        *,
        set_active: bool = False,
        overwrite_ok: bool = False,
    ) -> None:
        """Add an adapter, freshly initialised, at every site its configuration wants. Raises AdapterError."""
        self._check_free(name, self.parts.adapter_configs, "adapter", overwrite_ok)
        self.parts.add_adapter(name, read_config(config), self.backbone)
        self._planner.forget()
        if set_active:
            self.set_active_adapters(name)

    def add_adapter_fusion(
        self,
        adapters: Setup,
        config: str | FusionConfig = "dynamic",
        *,
        name: str | None = None,
        set_active: bool = False,
        overwrite_ok: bool = False,
    ) -> str:
        """Add an AdapterFusion over members (a Fuse, a list of names, or "a,b,c") and return its name."""
        fuse = as_fuse(adapters, name)
        if isinstance(config, str) and config not in FUSIONS:
            raise AdapterError(f"fusion configuration {config!r} is unknown; there are {', '.join(FUSIONS)}")
        self._check_free(fuse.name, self.parts.fusion_records, "fusion", overwrite_ok)
        self.parts.add_fusion(fuse, FUSIONS[config] if isinstance(config, str) else config, self.backbone)
        self._planner.forget()
        if set_active:
            self.set_active_adapters(fuse)
        return fuse.name

    def add_head(self, name: str, config: HeadConfig, *, overwrite_ok: bool = False) -> None:
        """Add a head and make it the default head. Raises AdapterError."""
        self._check_free(name, self.parts.head_configs, "head", overwrite_ok)
        self.parts.add_head(name, config, self.backbone)
        self._planner.forget()
        self._active_head = name

    def add_classification_head(
        self,
        name: str,
        num_labels: int = 2,
        layers: int = 2,
        activation_function: str = "tanh",
        *,
        id2label: Mapping[int, str] | None = None,
        pooling: str | None = None,
        overwrite_ok: bool = False,
    ) -> None:
        """Add a head with one answer a row: logits (B, num_labels)."""
        config = HeadConfig(
            kind="classification",
            num_outputs=num_labels,
            layers=layers,
            activation=activation_function,
            pooling=pooling or self.default_pooling,
            dropout=self._dropout,
            labels=labels_of(id2label),
        )
        self.add_head(name, config, overwrite_ok=overwrite_ok)

    def add_regression_head(
        self, name: str, layers: int = 2, *, pooling: str | None = None, overwrite_ok: bool = False
    ) -> None:
        """Add a head with one number a row: logits (B, 1)."""
        config = HeadConfig(
            kind="regression",
            num_outputs=1,
            layers=layers,
            pooling=pooling or self.default_pooling,
            dropout=self._dropout,
        )
        self.add_head(name, config, overwrite_ok=overwrite_ok)

    def add_tagging_head(
        self,
        name: str,
        num_labels: int = 2,
        layers: int = 1,
        activation_function: str = "tanh",
        *,
        id2label: Mapping[int, str] | None = None,
        overwrite_ok: bool = False,
    ) -> None:
        """Add a head with one answer a token: logits (B, T, num_labels)."""
        config = HeadConfig(
            kind="tagging",
            num_outputs=num_labels,
            layers=layers,
            activation=activation_function,
            pooling="none",
            dropout=self._dropout,
            labels=labels_of(id2label),
        )
        self.add_head(name, config, overwrite_ok=overwrite_ok)

    def delete_adapter(self, name: str) -> None:
        """Remove an adapter. Raises AdapterError while a fusion or the active setup uses it."""
        self.parts.need_adapter(name)
        users = [key for key, record in self.parts.fusion_records.items() if name in leaves(record.tree)]
        users += ["the active setup"] if name in leaves(self._active) else []
        if users:
            raise AdapterError(f"adapter {name!r} is used by {', '.join(users)}; remove or change that first")
        self.parts.remove("adapters", name)
        self._planner.forget()

    def delete_adapter_fusion(self, name: str) -> None:
        """Remove a fusion. Raises AdapterError while the active setup uses it."""
        if name not in self.parts.fusion_records:
            raise AdapterError(
                f"no fusion {name!r}; the fusions are: {', '.join(self.parts.fusion_records) or 'none yet'}"
            )
        if name in {fuse.name for fuse in fusions(self._active)}:
            raise AdapterError(f"fusion {name!r} is used by the active setup; change that first")
        self.parts.remove("fusions", name)
        self._planner.forget()

    def delete_head(self, name: str) -> None:
        """Remove a head."""
        self.parts.head(name)
        self.parts.remove("heads", name)
        self._planner.forget()
        self._active_head = None if self._active_head == name else self._active_head

    @staticmethod
    def _check_free(name: str, taken: Mapping[str, object], kind: str, overwrite_ok: bool) -> None:
        for part in name.split(","):  # a fusion without a name of its own is called like its members: "a,b"
            check_name(part)
        if name in taken and not overwrite_ok:
            raise AdapterError(f"{kind} {name!r} is already there; choose another name, or pass overwrite_ok=True")

    # -- defaults and training ----------------------------------------------------------------------------------------

    @property
    def active_adapters(self) -> Composition:
        """The default of `adapters=`. Assigning is the same as `set_active_adapters`."""
        return self._active

    @active_adapters.setter
    def active_adapters(self, setup: Setup) -> None:
        self.set_active_adapters(setup)

    def set_active_adapters(self, setup: Setup) -> None:
        """Set the composition that runs when a call names none. Raises AdapterError for a name that is not there."""
        tree = as_composition(setup)
        self.parts.check(tree)
        self._active = tree
        named = top(tree)
        if named in self.parts.head_configs:
            self._active_head = named

    @property
    def active_head(self) -> str | None:
        """The head of calls that name neither adapters nor head, where the active setup has none of its own."""
        return self._active_head

    @active_head.setter
    def active_head(self, name: str | None) -> None:
        if name is not None:
            self.parts.head(name)
        self._active_head = name

    def train_adapter(self, setup: Setup) -> None:
        """Train the adapters of a composition and its head, freeze everything else, and make the composition active."""
        self.set_active_adapters(setup)
        self._train([("adapters", name) for name in dict.fromkeys(leaves(self._active))])

    def train_adapter_fusion(self, setup: Setup, unfreeze_adapters: bool = False) -> None:
        """Train the fusions of a composition and its head; the members stay frozen unless told otherwise."""
        tree = as_composition(setup)
        self.set_active_adapters(tree if fusions(tree) else as_fuse(tree))
        chosen = [("fusions", fuse.name) for fuse in fusions(self._active)]
        if unfreeze_adapters:
            chosen += [("adapters", name) for name in dict.fromkeys(leaves(self._active))]
        self._train(chosen)

    def _train(self, chosen: list[tuple[str, str]]) -> None:
        head = head_of(self._active, list(self.parts.head_configs), self._active_head)
        self.parts.train_only([*chosen, *([("heads", head)] if head else [])])
        self.train()

    # -- running ------------------------------------------------------------------------------------------------------

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        pixel_values: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        *,
        adapters: Setup | Default = Default.ACTIVE,
        head: str | Sequence[str] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the base under a route, and the heads of its rows.

        adapters: a composition for the whole batch, or a list with one per row (each a name, expression, block or None);
        left out, the active setup; None, no adapter. head: a head for all rows or one per row; "none" for the base's own
        output. extra: further arguments of the base's forward. Tensors are (B, T) ids and masks, labels (B,) or (B, T).
        Returns an AdapterOutput, or the base's own output where no head answers. Parallel makes N·B rows of B.
        """
        tensors = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
            "pixel_values": pixel_values,
            "decoder_input_ids": decoder_input_ids,
            "decoder_attention_mask": decoder_attention_mask,
            "labels": labels,
        }
        given = {key: value for key, value in tensors.items() if value is not None}
        if not given.keys() - {"labels"}:
            raise AdapterError("forward needs inputs: input_ids, inputs_embeds or pixel_values")
        plan = self._plan(adapters, head, next(iter(given.values())).shape[0])
        given = plan.repeat(given)
        options = {"output_hidden_states": output_hidden_states, "output_attentions": output_attentions}
        wanted = {key: value for key, value in options.items() if value is not None} | dict(extra or {})
        return self._run(plan, given, wanted)

    def _run(self, plan: Plan, inputs: dict[str, Tensor], options: dict[str, Any]) -> Any:
        with self.backbone.runtime.running(plan.route):
            if plan.heads is None:
                return self.base(**inputs, **options)
            labels = inputs.pop("labels", None)
            output, mask = self.backbone.run_trunk(inputs, options)
        result = answer(plan.heads, self.parts.head, output[0], mask, labels)
        for key in ("hidden_states", "attentions"):
            if output.get(key) is not None:
                result[key] = output[key]
        if result.loss is not None and self.training:
            penalty = self.parts.fusion_penalty(plan.trees)
            if penalty is not None:
                result["loss"] = result.loss + penalty.to(result.loss)
        return result

    def _plan(self, adapters: Setup | Default, head: str | Sequence[str] | None, batch: int) -> Plan:
        active = isinstance(adapters, Default)
        return self._planner.plan(
            self._active if active else adapters, head, self._active_head if active else None, batch
        )

    def generate(
        self, inputs: Tensor | None = None, *, adapters: Setup | Default = Default.ACTIVE, **options: Any
    ) -> Any:
        """transformers' `generate` of the base under one route; `options` are its own. Beams follow their row.

        Parallel is refused: call once per branch. Raises AdapterError for a base that cannot generate.
        """
        given = inputs if inputs is not None else options.get("input_ids", options.get("inputs_embeds"))
        if not hasattr(self.base, "generate") or not self.base.can_generate() or given is None:
            raise AdapterError(
                f"generate needs inputs and a base with a language-modelling head; this one is {type(self.base).__name__}"
            )
        plan = self._plan(adapters, NO_HEAD, given.shape[0])
        if plan.sources is not None:
            raise AdapterError("generate cannot repeat rows for Parallel; call it once per branch")
        with self.backbone.runtime.running(plan.route):
            return self.base.generate(inputs, **options)

    def activation_checkpointing_enable(
        self,
        activation_checkpointing_kwargs: Mapping[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """Recompute layers in the backward, each under the route that its forward had (non-reentrant only)."""
        given = dict(activation_checkpointing_kwargs or {})
        if given.get("use_reentrant") or "context_fn" in given:
            raise AdapterError("activation checkpointing: use_reentrant=True and context_fn are not possible here, the "
                               "route is restored through the context_fn of the non-reentrant form")  # fmt: skip
        given |= {"use_reentrant": False, "context_fn": self.backbone.runtime.checkpoint_contexts}
        self.base.activation_checkpointing_enable(given, every_n_layers=every_n_layers, offload=offload)

    gradient_checkpointing_enable = activation_checkpointing_enable

    # -- files --------------------------------------------------------------------------------------------------------

    def package(self, name: str, *, with_head: bool = True, provenance: Provenance | None = None) -> Package:
        """An adapter, fusion or head by name as a package. Raises AdapterError for an unknown name."""
        return pack(self.parts, self.backbone, name, with_head, provenance or Provenance())

    def install(self, package: Package, name: str | None = None, *, with_head: bool = True) -> str:
        """Add what a package holds and return its name here; all of it or nothing.

        Raises Conflict for another base, PackageError for tensors that do not fit, AdapterError for a name in use.
        """
        name = install(self.parts, self.backbone, package, check_name(name or package.manifest.name), with_head)
        self._planner.forget()
        return name

    def save_adapter(self, folder: str | Path, name: str, *, with_head: bool = True) -> str:
        """Write an adapter (with the head of its name), a fusion or a head as a package; return its digest."""
        return write(self.package(name, with_head=with_head), Path(folder), overwrite=True)

    save_adapter_fusion = save_head = save_adapter

    def load_adapter(
        self, folder: str | Path, *, load_as: str | None = None, with_head: bool = True, set_active: bool = False
    ) -> str:
        """Read a package folder, install it, and return its name here."""
        name = self.install(read(Path(folder)), load_as, with_head=with_head)
        if set_active:
            self.set_active_adapters(name)
        return name

    load_adapter_fusion = load_head = load_adapter

    def save_all_adapters(self, folder: str | Path) -> None:
        """Write every adapter, each into a sub-folder of its name."""
        for name in self.parts.adapter_configs:
            self.save_adapter(Path(folder) / name, name)

    def state_dict(self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        """Adapters, fusions and heads only: what a checkpoint must hold. The base is where it came from."""
        return self.parts.state_dict(*args, destination=destination, prefix=f"{prefix}parts.", keep_vars=keep_vars)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load what `state_dict` gave, into a model with the same parts."""
        inner = {key.removeprefix("parts."): value for key, value in state_dict.items()}
        return self.parts.load_state_dict(inner, strict=strict, assign=assign)

    # -- looking ------------------------------------------------------------------------------------------------------

    @property
    def config(self) -> Any:
        """The base's configuration."""
        return self.base.config

    @property
    def device(self) -> torch.device:
        """Where the base is."""
        return self.base.device  # type: ignore[no-any-return]

    @property
    def dtype(self) -> torch.dtype:
        """The base's floating-point type."""
        return self.base.dtype  # type: ignore[no-any-return]

    @property
    def default_pooling(self) -> str:
        """What stands for a row: the first token where tokens see each other, the last where they see only backwards."""
        return "last" if self.backbone.family.causal else "first"

    @property
    def _dropout(self) -> float:
        return float(getattr(self.config, "hidden_dropout_prob", None) or getattr(self.config, "dropout", None) or 0.0)

    def adapter_summary(self) -> Summary:
        """Names, methods, parameter counts and what is active or trains; printable, with `rows` for a machine."""
        return summarise(self.parts, self.backbone, self._active)


class AutoAdapterModel:
    """AdapterHub's way in: `AutoAdapterModel.from_pretrained(id)`."""

    @staticmethod
    def from_pretrained(name: str | Path, **options: Any) -> AdapterModel:
        """Load a bare trunk by id, folder or `minilm`; `options` are those of transformers' AutoModel. BackboneError."""
        return AdapterModel(load_model(name, **options))


def labels_of(id2label: Mapping[int, str] | None) -> tuple[str, ...]:
    """Label names in the order of their ids. Raises AdapterError unless the ids are 0, 1, 2, ..."""
    if id2label is None:
        return ()
    by_id = {int(key): str(value) for key, value in id2label.items()}
    if sorted(by_id) != list(range(len(by_id))):
        raise AdapterError(f"id2label {dict(id2label)} must number its labels 0 to {len(by_id) - 1}")
    return tuple(by_id[number] for number in range(len(by_id)))
