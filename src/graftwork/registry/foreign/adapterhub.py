"""Folders that AdapterHub wrote, from adapter-transformers 1.0 to adapters 1.3: adapter, head, fusion.

    adapter_config.json + pytorch_adapter.bin | adapter.safetensors        head_config.json + pytorch_model_head.bin | …
    adapter_fusion_config.json + pytorch_model_adapter_fusion.bin | …      (whole setups: `adapterhub_setup.py`)

What a file says is read by its own version's rules: without a version, gelu meant gelu_new and a task adapter names an
invertible part that it never had; before 1.1, LoRA's alpha had no effect. Every import is marked `adapters-1`: its
weights were trained under that library's readings of compositions. Raises PackageError for anything that is not whole.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from graftwork.errors import PackageError
from graftwork.registry.foreign.bottleneck import Era, bottleneck_config, read_bottleneck
from graftwork.registry.foreign.files import read_json, read_weights
from graftwork.registry.foreign.heads import CONFIG as HEAD_CONFIG
from graftwork.registry.foreign.heads import read_head_files
from graftwork.registry.foreign.imported import UNKNOWN, Asserted, Facts, Imported, Ledger, honest
from graftwork.registry.foreign.keys import Key, keys_of, take_apart
from graftwork.registry.foreign.layouts import layout_of
from graftwork.registry.foreign.lora import lora_config, read_lora
from graftwork.registry.foreign.places import Layout
from graftwork.registry.foreign.prefix import prefix_config, read_prefix
from graftwork.registry.foreign.reft import prompt_config, read_prompt, read_reft, reft_config
from graftwork.registry.foreign.static_heads import STATIC

ADAPTER_CONFIG, ADAPTER_SAFE, ADAPTER_PICKLED = "adapter_config.json", "adapter.safetensors", "pytorch_adapter.bin"
FUSION_CONFIG = "adapter_fusion_config.json"
FUSION_SAFE, FUSION_PICKLED = "model_adapter_fusion.safetensors", "pytorch_model_adapter_fusion.bin"

SEMANTICS: Literal["adapters-1"] = "adapters-1"
FUSION_FIELDS: dict[str, Any] = {
    "key": True,
    "query": True,
    "value": True,
    "query_before_ln": False,
    "regularization": True,
    "residual_before": False,
    "value_before_softmax": True,
    "value_initialized": True,
}


def read_adapterhub(
    folder: Path | str, *, facts: Facts = UNKNOWN, subtract_projection: bool | None = None
) -> list[Imported]:
    """The adapter of a folder and the head beside it: one import where they have one name, else two.

    facts: of the base, where a file is silent. subtract_projection: for a ReFT without orthogonality. Raises NotFound,
    PackageError.
    """
    folder = Path(folder)
    with honest(str(folder)):
        adapter = _read_adapter(folder, facts, subtract_projection)
    if not (folder / HEAD_CONFIG).exists():
        return [adapter]
    head = read_head(folder, facts=facts, name=adapter.name)
    if head.name != adapter.name:
        return [adapter, head]
    return [_joined(adapter, head)]


def _read_adapter(folder: Path, facts: Facts, subtract: bool | None) -> Imported:
    meta = read_json(folder, ADAPTER_CONFIG)
    where = str(folder / ADAPTER_CONFIG)
    if "peft_type" in meta:
        raise PackageError(f"{where}: has a peft_type, {meta['peft_type']!r}: it is PEFT's; read it with read_peft")
    base, name = _base(meta, where), _name(meta, where)
    layout = layout_of(base.model_type, where)
    file, tensors = read_weights(folder, ADAPTER_SAFE, ADAPTER_PICKLED)
    ledger = Ledger(str(folder / file), tensors)
    keys = keys_of(tensors, name)
    reading = _Reading(ledger, keys, layout, facts, meta, subtract, where)
    written = meta.get("config")
    if not isinstance(written, dict):
        raise PackageError(f"{where}: config is {written!r:.80}; expected the fields of an adapter")
    method = reading.union(written) if written.get("architecture") == "union" else reading.member(written)
    ledger.close()
    if not ledger.tensors:
        raise PackageError(f"{ledger.where}: no tensor belongs to adapter {name!r}; it holds {sorted(tensors)[:3]}")
    return Imported(
        name=name,
        role="language" if meta.get("type") == "text_lang" else "task",
        base=base,
        tensors=ledger.tensors,
        fates=tuple(ledger.fates),
        method=method,
        semantics=SEMANTICS,
        notes=tuple(ledger.notes),
        source=_source(meta),
    )


class _Reading:
    """One adapter file on its way: what the methods' readers take from."""

    def __init__(
        self,
        ledger: Ledger,
        keys: list[Key],
        layout: Layout,
        facts: Facts,
        meta: Mapping[str, Any],
        subtract: bool | None,
        where: str,
    ) -> None:
        self.ledger, self.keys, self.layout, self.facts = ledger, keys, layout, facts
        self.version = str(meta.get("version") or "")
        self.era = Era(not self.version, str(meta.get("type") or ""))
        self.subtract, self.where = subtract, where
        head = STATIC.get(str(meta.get("model_class")))
        # since version 0.1 nothing undoes an invertible adapter before a static language-modelling head
        self.never_undone = head is not None and head.kind.endswith("_lm") and self.version.startswith("adapters.")

    def member(self, written: Mapping[str, Any]) -> dict[str, Any]:
        """Read one method and return our configuration. Raises PackageError."""
        architecture, notes = written.get("architecture"), self.ledger.notes
        if architecture in (None, "bottleneck"):
            config = bottleneck_config(written, self.era, self.where)
            if config.get("inv_adapter") and self.never_undone:
                config["inverse_at_head"] = False
            return read_bottleneck(self.ledger, self.keys, config, self.layout, self.era)
        if architecture == "lora":
            config = lora_config(written, self.version, self.where, notes)
            return read_lora(self.ledger, self.keys, config, self.layout, self.facts)
        if architecture == "prefix_tuning":
            config = prefix_config(written, self.where)
            read_prefix(self.ledger, self.keys, config, self.layout, self.facts)
        elif architecture == "reft":
            config = reft_config(written, self.subtract, self.where, notes)
            read_reft(self.ledger, self.keys, config, self.layout)
        elif architecture == "prompt_tuning":
            config = prompt_config(written, self.where)
            read_prompt(self.ledger, self.keys, self.layout)
        else:
            known = "bottleneck, lora, prefix_tuning, prompt_tuning, reft, union"
            raise PackageError(f"{self.where}: architecture {architecture!r} is not read; there are {known}")
        return config

    def union(self, written: Mapping[str, Any]) -> dict[str, Any]:
        """Read every member of a union, each taking what is its own."""
        members = written.get("configs")
        if not isinstance(members, list) or not all(isinstance(one, dict) for one in members) or not members:
            raise PackageError(f"{self.where}: a union without its configs: {members!r:.80}")
        if any(one.get("architecture") == "union" for one in members):
            raise PackageError(f"{self.where}: a union inside a union has no meaning in AdapterHub")
        made = []
        for number, one in enumerate(members):
            self.ledger.member = f"{number}."
            made.append(self.member(one))
        return {"kind": "union", "members": made}


def read_head(folder: Path | str, *, facts: Facts = UNKNOWN, name: str | None = None) -> Imported:
    """The head in a folder; `name`: for a head of transformers, which has none. Raises NotFound, PackageError."""
    folder = Path(folder)
    with honest(str(folder)):
        meta, head, ledger = read_head_files(folder, facts)
    static = not isinstance(meta.get("config"), dict)
    own = (name or folder.name) if static else _name(meta, str(folder / HEAD_CONFIG))
    return Imported(
        name=own,
        role="head",
        base=_base(meta, str(folder / HEAD_CONFIG)),
        tensors=ledger.tensors,
        fates=tuple(ledger.fates),
        head=head,
        semantics=SEMANTICS,
        notes=tuple(ledger.notes),
        source=_source(meta),
    )


def read_fusion(folder: Path | str) -> Imported:
    """The AdapterFusion in a folder. Raises NotFound, PackageError."""
    with honest(str(folder)):
        return _read_fusion(Path(folder))


def _read_fusion(folder: Path) -> Imported:
    meta, where = read_json(folder, FUSION_CONFIG), str(folder / FUSION_CONFIG)
    base, name = _base(meta, where), _name(meta, where)
    layout = layout_of(base.model_type, where)
    file, tensors = read_weights(folder, FUSION_SAFE, FUSION_PICKLED)
    ledger = Ledger(str(folder / file), tensors)
    for text in tensors:
        _take_fusion(ledger, text, name, layout)
    ledger.close()
    return Imported(
        name=name,
        role="fusion",
        base=base,
        tensors=ledger.tensors,
        fates=tuple(ledger.fates),
        members=_members(meta, name, where),
        fusion=_fusion_config(meta, where, ledger),
        semantics=SEMANTICS,
        notes=tuple(ledger.notes),
        source=_source(meta),
    )


def _take_fusion(ledger: Ledger, text: str, name: str, layout: Layout) -> None:
    key = take_apart(text, name)
    if key is None:
        steps = text.split(".")
        at = steps.index("adapter_fusion_layer") + 1 if "adapter_fusion_layer" in steps else len(steps)
        if at < len(steps) and steps[at].startswith(name):
            ledger.ignore(text, f"belongs to fusion {steps[at]!r}: AdapterHub saves all whose names begin alike")
        return
    site = layout.site(key.place)
    if key.collection == "fusion" and site is not None:
        if key.leaf.startswith("dense."):
            ledger.ignore(text, "a layer that AdapterHub makes and never uses")
        else:
            ledger.take(text, f"fusion/{site}/{key.leaf}")


def _fusion_config(meta: Mapping[str, Any], where: str, ledger: Ledger) -> dict[str, Any]:
    written = meta.get("config")
    if not isinstance(written, dict):
        raise PackageError(f"{where}: config is {written!r:.80}; expected the fields of a fusion")
    config = dict(FUSION_FIELDS)
    for key, value in written.items():
        if key in config:
            config[key] = value
        elif key == "temperature":
            if value:
                ledger.notes.append("temperature falls from 50 to 1 by the calls of AdapterHub's model: it is 1 here")
        elif key not in ("dropout_prob", "new_attention_norm"):
            raise PackageError(f"{where}: unknown field {key!r} of a fusion, with value {value!r:.80}")
    return {**config, "dropout_prob": float(written.get("dropout_prob") or 0.0)}


def _members(meta: Mapping[str, Any], name: str, where: str) -> tuple[str, ...]:
    members = meta.get("adapter_names", name)
    members = members.split(",") if isinstance(members, str) else members
    if not isinstance(members, list) or not members or not all(isinstance(one, str) and one for one in members):
        raise PackageError(f"{where}: adapter_names {members!r:.80} should be the names of the members")
    return tuple(members)


def _joined(adapter: Imported, head: Imported) -> Imported:
    return Imported(
        name=adapter.name,
        role=adapter.role,
        base=adapter.base,
        tensors={**adapter.tensors, **head.tensors},
        fates=(*adapter.fates, *head.fates),
        method=adapter.method,
        head=head.head,
        semantics=adapter.semantics,
        notes=(*adapter.notes, *head.notes),
        source=adapter.source,
    )


def _base(meta: Mapping[str, Any], where: str) -> Asserted:
    model_type, width = meta.get("model_type"), meta.get("hidden_size")
    if not isinstance(model_type, str) or not isinstance(width, int) or width < 1:
        raise PackageError(f"{where}: model_type {model_type!r} and hidden_size {width!r} should name the base")
    return Asserted(model_type, width, str(meta.get("model_name") or ""))


def _name(meta: Mapping[str, Any], where: str) -> str:
    name = meta.get("name")
    if not isinstance(name, str) or not name or "." in name:
        raise PackageError(f"{where}: name {name!r} should be the adapter's, which has no dot in AdapterHub")
    return name


def _source(meta: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "tool": "AdapterHub",
        "version": str(meta.get("version") or "before 3"),
        "model_class": str(meta.get("model_class") or ""),
    }
