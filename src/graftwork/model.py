"""AdapterModel: the object people hold. One frozen backbone with adapters, fusions and heads, and a route per call.

    model = AutoAdapterModel.from_pretrained("bert-base-uncased")
    model.add_adapter("sst-2", config="seq_bn")
    model.add_classification_head("sst-2", num_labels=2)
    model.train_adapter("sst-2")
    model(input_ids, attention_mask, adapters=["sst-2", None], head="sst-2")

What a call does depends on its arguments: `set_active_adapters` only sets the default of `adapters=`, which is resolved
to an explicit route before the forward starts. The base's weights are never changed.
"""

import enum
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import quote

import torch
from torch import Tensor, nn

from graftwork.compose import vocabulary
from graftwork.compose.answer import head_of
from graftwork.compose.blend import average_adapter, average_head
from graftwork.compose.claims import check_free, check_unfused
from graftwork.compose.compiled import compile_trunk, reserve
from graftwork.compose.eject import eject_prefixes
from graftwork.compose.forward import Asks, forward, headless
from graftwork.compose.grammar import as_composition, as_fuse
from graftwork.compose.inputs import SPOKEN_OF, check_extra, for_heads, shape_of
from graftwork.compose.lower import Lanes
from graftwork.compose.merge import merge_adapter, reset_adapter
from graftwork.compose.methods import adds, asks, changes, plans
from graftwork.compose.parts import Parts
from graftwork.compose.plan import NO_HEAD, Plan, Planner
from graftwork.compose.prune import fusion_attention, prune_fusion
from graftwork.compose.speak import speaker
from graftwork.compose.tree import Composition, fusions, leaves, show, top
from graftwork.compose.wording import begin_as_text, rows_of_text
from graftwork.core import heads_hub
from graftwork.core.backbone import Backbone, load_model
from graftwork.core.families import Family
from graftwork.core.fusion import FUSIONS, FusionConfig
from graftwork.core.heads import HeadConfig, labelled
from graftwork.core.heads_custom import Factory
from graftwork.core.heads_facts import facts_of
from graftwork.core.kinds import MethodConfig, read_config
from graftwork.errors import AdapterError
from graftwork.packing import Provenance, install, pack
from graftwork.registry.package import Package, read, write
from graftwork.summary import Summary, summarise
from graftwork.wordfiles import load_embeddings, save_embeddings

Setup: TypeAlias = Composition | Lanes | Sequence[Any]  # a composition in any spelling that `as_composition` reads


class Default(enum.Enum):
    """What `adapters=` means when it is left out."""

    ACTIVE = "the active setup"


class AdapterModel(nn.Module):
    """A frozen model with adapters. The sites of one without a row are discovered by one forward.

    model: or the backbone of another one, whose frozen base is then shared. probe: that forward's arguments, made up
    where left out. family: the sites, described by hand. Raises BackboneError for a model whose sites are not found.
    """

    accepts_loss_kwargs = False  # our losses are means: Trainer divides by the accumulation steps itself

    def __init__(
        self, model: nn.Module | Backbone, family: Family | None = None, *, probe: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.backbone = model if isinstance(model, Backbone) else Backbone(model, family, probe)
        self.base = self.backbone.model
        self.parts = Parts()
        self._planner = Planner(self.parts, self.backbone.normed, depths=[site.depth for site in self.backbone.sites])
        self._active: Composition = None
        self._active_head: str | None = None
        self.train(self.base.training if isinstance(model, Backbone) else model.training)

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
        check_free(self.parts, name, "adapters", overwrite_ok)
        rows = rows_of_text(chosen := read_config(config), self.backbone)
        self.parts.add_adapter(name, chosen, self.backbone)
        if rows is not None:
            begin_as_text(self.parts, name, rows)
        self._planner.forget(name)
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
        check_free(self.parts, fuse.name, "fusions", overwrite_ok)
        self.parts.add_fusion(fuse, FUSIONS[config] if isinstance(config, str) else config, self.backbone)
        self._planner.forget(fuse.name)
        if set_active:
            self.set_active_adapters(fuse)
        return fuse.name

    def add_head(
        self, name: str, config: HeadConfig, *, overwrite_ok: bool = False, module: nn.Module | None = None
    ) -> None:
        """Add a head and make it the default head; `module`: a custom one, built. Raises AdapterError."""
        check_free(self.parts, name, "heads", overwrite_ok)
        self.parts.add_head(name, config, self.backbone, module)
        self._planner.forget(name)
        self._active_head = name

    add_classification_head = adds(heads_hub.classification)
    add_image_classification_head = adds(heads_hub.image_classification)
    add_regression_head = adds(heads_hub.regression)
    add_multiple_choice_head = adds(heads_hub.multiple_choice)
    add_tagging_head = adds(heads_hub.tagging)
    add_qa_head = adds(heads_hub.question_answering)
    add_dependency_parsing_head = adds(heads_hub.dependency_parsing)
    add_masked_lm_head = adds(heads_hub.masked_lm)
    add_causal_lm_head = adds(heads_hub.causal_lm)
    add_seq2seq_lm_head = adds(heads_hub.seq2seq_lm)
    add_embedding_head = adds(heads_hub.sentence_embedding)

    def register_custom_head(self, head_type: str, factory: Factory) -> None:
        """Give a factory of head modules a name: `factory(width, **arguments)`. The name is what a package holds."""
        self.parts.custom_heads[head_type] = factory

    def add_custom_head(
        self, head_type: str | nn.Module, name: str, overwrite_ok: bool = False, **arguments: Any
    ) -> None:
        """Add a head of a registered type, or a module of your own, which cannot be packaged. Raises AdapterError."""
        module = head_type if isinstance(head_type, nn.Module) else None
        if module is not None and arguments:
            raise AdapterError(f"add_custom_head: a module is made already and takes no {', '.join(arguments)}")
        named = "" if isinstance(head_type, nn.Module) else head_type
        config = HeadConfig(kind="custom", num_outputs=1, layers=0, pooling="none", custom=named, arguments=arguments)
        self.add_head(name, config, overwrite_ok=overwrite_ok, module=module)

    def delete_adapter(self, name: str) -> None:
        """Remove an adapter. Raises AdapterError while a fusion or the active setup uses it."""
        self.parts.need_adapter(name)
        check_unfused(self.parts, name)
        if name in leaves(self._active):
            raise AdapterError(f"adapter {name!r} is used by the active setup {show(self._active)}; change that first")
        self.parts.remove("adapters", name)
        self._planner.forget(name)

    def eject_prefix_tuning(self, name: str) -> None:
        """Make an adapter's reparameterised prefixes flat, with the same numbers. Raises AdapterError for none."""
        eject_prefixes(self.parts, self.backbone, name)
        self._planner.forget(name)

    def delete_adapter_fusion(self, name: str) -> None:
        """Remove a fusion. Raises AdapterError while the active setup uses it."""
        if name not in self.parts.fusion_records:
            raise AdapterError(
                f"no fusion {name!r}; the fusions are: {', '.join(self.parts.fusion_records) or 'none yet'}"
            )
        if name in {fuse.name for fuse in fusions(self._active)}:
            raise AdapterError(f"fusion {name!r} is used by the active setup; change that first")
        self.parts.remove("fusions", name)
        self._planner.forget(name)

    def delete_head(self, name: str) -> None:
        """Remove a head."""
        self.parts.head(name)
        self.parts.remove("heads", name)
        self._planner.forget(name)
        self._active_head = None if self._active_head == name else self._active_head

    average_adapter = changes(average_adapter)
    average_head = changes(average_head)
    merge_adapter = changes(merge_adapter)
    reset_adapter = changes(reset_adapter)
    compile, reserve = plans(compile_trunk), plans(reserve)
    fusion_attention = asks(fusion_attention)
    prune_fusion = asks(prune_fusion)
    add_embeddings = asks(vocabulary.add_embeddings)
    delete_embeddings = asks(vocabulary.delete_embeddings)

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
        if (named := top(tree)) in self.parts.head_configs:
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

    set_active_embeddings = asks(vocabulary.set_active_embeddings)

    @property
    def active_embeddings(self) -> str:
        """The embeddings of calls that name none; "default" are the base's own."""
        return self.parts.active_embeddings

    def train_adapter(self, setup: Setup, train_embeddings: bool = False) -> None:
        """Train the adapters of a composition and its head, and the active embeddings if asked; freeze the rest.

        The composition becomes active.
        """
        tree = as_composition(setup)
        words = [vocabulary.trained_words(self.parts)] if train_embeddings else []
        self._train(tree, [*(("adapters", name) for name in dict.fromkeys(leaves(tree))), *words])

    def train_adapter_fusion(self, setup: Setup, unfreeze_adapters: bool = False) -> None:
        """Train the fusions of a composition (or of a list of names) and its head; the members stay frozen unless told
        otherwise."""
        listed = isinstance(setup, list | tuple) or (isinstance(setup, str) and "(" not in setup)
        tree = as_fuse(setup) if listed else as_composition(setup)
        tree = tree if fusions(tree) else as_fuse(tree)
        chosen = [("fusions", fuse.name) for fuse in fusions(tree)]
        if unfreeze_adapters:
            chosen += [("adapters", name) for name in dict.fromkeys(leaves(tree))]
        self._train(tree, chosen)

    def _train(self, tree: Composition, chosen: list[tuple[str, str]]) -> None:
        self.parts.check(tree)
        head = head_of(tree, list(self.parts.head_configs), self._active_head)
        self.set_active_adapters(tree)
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
        labels: Tensor | Mapping[str, Tensor] | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        word_starts: Tensor | None = None,
        input_features: Tensor | None = None,
        input_values: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        *,
        adapters: Setup | Default = Default.ACTIVE,
        head: str | Sequence[str | None] | None = None,
        skip_layers: Sequence[int] = (),
        embeddings: str | None = None,
        extra: Mapping[str, Any] | None = None,
        scored_only: bool = False,
    ) -> Any:
        """Run the base under a route, and the heads of its rows.

        adapters: a composition for the batch, a list with one per row (each a name, expression, block or None), or
        Lanes; left out, the active setup; None, no adapter. head: for all rows or one per row (or lane); "none" for the
        base's own output. skip_layers: layers (encoder first) that run without adapters. embeddings: of all rows; left
        out, the active ones. extra: further arguments of the base; their rows are repeated too. scored_only: a
        language head gives the m logits that its loss reads, (m, V). Tensors are (B, T), (B, C, T) with C texts a
        question; labels as the head's loss has them, or by head's name. Returns an AdapterOutput, or the base's own
        output where no head answers. Parallel makes N·B rows. Raises AdapterError, CompositionError (rows do not fit).
        """
        tensors = {
            "input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids,
            "position_ids": position_ids, "inputs_embeds": inputs_embeds, "pixel_values": pixel_values,
            "decoder_input_ids": decoder_input_ids, "decoder_attention_mask": decoder_attention_mask,
            "labels": labels if isinstance(labels, Tensor) else None, "word_starts": word_starts,
            "start_positions": start_positions, "end_positions": end_positions, "input_features": input_features,
            "input_values": input_values, "decoder_inputs_embeds": decoder_inputs_embeds,
        }  # fmt: skip
        shape = shape_of(given := {key: value for key, value in tensors.items() if value is not None})
        plan = self.plan(shape.per_row(adapters), shape.per_row(head), shape.rows, skip_layers)
        plan = plan.speaking(vocabulary.words_of(self.parts, embeddings)).on(self.backbone, extra)
        wanted = {"output_hidden_states": output_hidden_states, "output_attentions": output_attentions}
        check_extra(extra or {}, {*tensors, *wanted})
        wanted = {key: value for key, value in wanted.items() if value is not None} | plan.further(extra, shape.rows)
        if plan.heads is None:
            by_head = ["labels by head"] if isinstance(labels, Mapping) else []
            self.backbone.check_inputs([*given, *wanted, *by_head], trunk_only=False)
            return headless(self.backbone, plan, plan.repeat(given), wanted)
        inputs = plan.repeat(for_heads(given, shape))
        asks = Asks(labels, shape.choices, self.training, scored_only)
        return forward(self.backbone, self.parts, plan, inputs, wanted, asks)

    def plan(
        self, adapters: Setup | Default, head: str | Sequence[str | None] | None, batch: int, skip: Sequence[int] = ()
    ) -> Plan:
        """What one call of `forward` with so many rows would do, made before it starts."""
        setup, default_head = (self._active, self._active_head) if isinstance(adapters, Default) else (adapters, None)
        return self._planner.plan(setup, head, default_head, batch, skip)

    def generate(
        self,
        inputs: Tensor | None = None,
        *,
        adapters: Setup | Default = Default.ACTIVE,
        head: str | None = None,
        embeddings: str | None = None,
        **options: Any,
    ) -> Any:
        """transformers' `generate` under one route; `options` are its own. Beams follow their row.

        A base with a language-modelling head of its own answers unless `head` names one of ours; a bare trunk answers
        by the head of its rows. Parallel is refused: call once per branch. Raises AdapterError where none can speak.
        """
        given = inputs if inputs is not None else next((options[key] for key in SPOKEN_OF if key in options), None)
        itself = hasattr(self.base, "generate") and self.base.can_generate() and head is None
        if given is None or not (itself or self.parts.head_configs):
            kind = type(self.base).__name__
            raise AdapterError(f"generate needs inputs and a base with a language-modelling head; this one is {kind}")
        plan = self.plan(adapters, NO_HEAD if itself else head, given.shape[0])
        plan = plan.speaking(vocabulary.words_of(self.parts, embeddings))
        if plan.sources is not None:
            raise AdapterError("generate cannot repeat rows for Parallel; call it once per branch")
        if plan.prompted:
            raise AdapterError("generate cannot put prompts in front of every step; use prefix tuning, which can")
        names = sorted(set(plan.heads or ()))
        if len(names) > 1:
            raise AdapterError(
                f"generate speaks by one head, and these rows have {', '.join(names)}; ask for them apart"
            )
        made = (
            speaker(self.backbone, self.parts.head(names[0]), plan.undoing(self.backbone.embedded))
            if names
            else self.base
        )
        with self.backbone.runtime.running(plan.route, words=plan.words):
            return made.generate(*([] if inputs is None else [inputs]), **options)  # sounds go by their own name

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
        self.base.disable_input_require_grads()  # only the reentrant form needs them

    gradient_checkpointing_enable = activation_checkpointing_enable

    # -- files --------------------------------------------------------------------------------------------------------

    def package(self, name: str, *, with_head: bool = True, provenance: Provenance | None = None) -> Package:
        """An adapter, fusion or head by name as a package. Raises AdapterError for an unknown name."""
        return pack(self.parts, self.backbone, name, with_head, provenance or Provenance())

    def install(self, package: Package, name: str | None = None, *, with_head: bool = True) -> str:
        """Add what a package holds and return its name here; all of it or nothing.

        Raises Conflict for another base, PackageError for tensors that do not fit, AdapterError for a name in use.
        """
        name = install(self.parts, self.backbone, package, name or package.manifest.name, with_head)
        self._planner.forget(name)
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
            record = self.parts.fusion_records.get(name)
            self.set_active_adapters(record.tree if record and name not in self.parts.adapter_configs else name)
        return name

    load_adapter_fusion = load_head = load_adapter
    save_embeddings = asks(save_embeddings)
    load_embeddings = asks(load_embeddings)

    def save_all_adapters(self, folder: str | Path) -> None:
        """Write every adapter, each into a sub-folder of its name (with "/" written "%2F")."""
        for name in self.parts.adapter_configs:
            self.save_adapter(Path(folder) / quote(name, safe="@"), name)

    def state_dict(self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        """Adapters, fusions, heads and embeddings only: what a checkpoint must hold. The base is where it came from."""
        return self.parts.state_dict(*args, destination=destination, prefix=f"{prefix}parts.", keep_vars=keep_vars)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load what `state_dict` gave, into a model with the same parts."""
        inner = {key.removeprefix("parts."): value for key, value in state_dict.items()}
        return self.parts.load_state_dict(inner, strict=strict, assign=assign)

    # -- looking ------------------------------------------------------------------------------------------------------

    @property
    def config(self) -> Any:
        """The base's configuration; where a head answers by default, a copy with its labels."""
        head, own = self._answering, self.base.config
        return own if head is None else labelled(own, self.parts.head_configs[head])

    @property
    def _answering(self) -> str | None:
        """The head of calls that name neither adapters nor head, or None."""
        named = top(self._active)
        return named if named in self.parts.head_configs else self._active_head

    @property
    def execution(self) -> str:
        """How calls that need no gradient run: "reference", "folded", "banked" or "auto" (`compose/execute.py`)."""
        return self._planner.executors.execution

    @execution.setter
    def execution(self, name: str) -> None:
        self._planner.executors.execution = name

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
        """What stands for a row: the first token where tokens see each other, the last where they see only back."""
        return facts_of(self.backbone).pooling

    @property
    def default_dropout(self) -> float:
        """The dropout of a head: that of the base's own hidden states."""
        return facts_of(self.backbone).dropout

    def adapter_to(self, name: str, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> None:
        """Move an adapter. Rarely needed: it is made on the device and in the dtype of the layers it sits in."""
        self.parts.need_adapter(name)
        self.parts.origins.pop(name, None)
        for module in self.parts.modules_of("adapters", name).values():
            module.to(device=device, dtype=dtype)

    def adapter_summary(self) -> Summary:
        """Names, methods, parameter counts and what is active or trains; printable, with `rows` for a machine."""
        return summarise(self.parts, self.backbone, self._active, self._answering)


class AutoAdapterModel:
    """AdapterHub's way in: `AutoAdapterModel.from_pretrained(id)`."""

    @staticmethod
    def from_pretrained(name: str | Path, **options: Any) -> AdapterModel:
        """Load a bare trunk by id, folder or `minilm`, as transformers' AutoModel does. Raises BackboneError."""
        return AdapterModel(load_model(name, **options))
