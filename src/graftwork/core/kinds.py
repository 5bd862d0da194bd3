"""The explicit table of methods, the named configurations, and the config strings people write.

    seq_bn[reduction_factor=8,non_linearity=gelu]      a named configuration with some flags changed
    lora[r=4]|seq_bn                                   a union: several methods under one name

To add a method: write `core/<method>.py` with a frozen config that builds an adapter for a site, add it to METHODS.
"""

import dataclasses
import difflib
from collections.abc import Mapping
from functools import partial
from typing import Any, cast

from graftwork.core.adapter import MethodConfig as MethodConfig
from graftwork.core.bitfit import BitFitConfig
from graftwork.core.bottleneck import BottleneckConfig
from graftwork.core.dora import DoRAConfig
from graftwork.core.ia3 import IA3Config
from graftwork.core.lora import LoRAConfig
from graftwork.core.prefix import PrefixTuningConfig
from graftwork.core.prompt import PromptTuningConfig
from graftwork.core.reft import ReftConfig
from graftwork.core.spellings import ALIASES
from graftwork.core.strings import flags_of, members, name_of
from graftwork.core.union import UnionConfig
from graftwork.core.vera import VeraConfig
from graftwork.errors import AdapterError

# kind -> the frozen configuration of a method; each builds what `core/adapter.py` describes
METHODS: dict[str, type[Any]] = {
    "bottleneck": BottleneckConfig,
    "lora": LoRAConfig,
    "dora": DoRAConfig,
    "vera": VeraConfig,
    "ia3": IA3Config,
    "bitfit": BitFitConfig,
    "prefix_tuning": PrefixTuningConfig,
    "prompt_tuning": PromptTuningConfig,
    "reft": ReftConfig,
    "union": UnionConfig,
}


def _llm_adapters() -> dict[str, BottleneckConfig]:
    # Hu et al. 2023: the lists of linears, not their flags, are what defines their published runs
    def series(*linears: str, parallel: bool = False) -> BottleneckConfig:
        return BottleneckConfig(
            output_adapter=False,
            linears=linears,
            bottleneck_size=256,
            non_linearity="tanh",
            bias=False,
            is_parallel=parallel,
        )

    return {
        "llm_series": series("ffn.up.input", "ffn.gate.input"),  # mathematics
        "llm_series_down": series("ffn.down"),  # common sense
        "llm_parallel": series("ffn.up", "ffn.down", parallel=True),
    }


NAMED: dict[str, MethodConfig] = {
    "seq_bn": BottleneckConfig(original_ln_before=True),
    "double_seq_bn": BottleneckConfig(mh_adapter=True, non_linearity="swish"),
    "par_bn": BottleneckConfig(is_parallel=True, init_weights="mam_adapter", reduction_factor=2, scaling=4.0),
    "scaled_par_bn": BottleneckConfig(
        is_parallel=True, init_weights="mam_adapter", reduction_factor=2, scaling="learned"
    ),
    "seq_bn_inv": BottleneckConfig(original_ln_before=True, inv_adapter="nice", inv_adapter_reduction_factor=2),
    "double_seq_bn_inv": BottleneckConfig(
        mh_adapter=True, non_linearity="swish", inv_adapter="nice", inv_adapter_reduction_factor=2
    ),
    "seq_bn_glow": BottleneckConfig(original_ln_before=True, inv_adapter="glow", inv_adapter_reduction_factor=2),
    "double_seq_bn_glow": BottleneckConfig(
        mh_adapter=True, non_linearity="swish", inv_adapter="glow", inv_adapter_reduction_factor=2
    ),
    "compacter": BottleneckConfig(mh_adapter=True, phm_layer=True, reduction_factor=32, non_linearity="gelu"),
    "compacter++": BottleneckConfig(original_ln_before=True, phm_layer=True, reduction_factor=32, non_linearity="gelu"),
    "adapter_plus": BottleneckConfig(
        original_ln_before=True,
        original_ln_after=False,
        residual_before_ln=False,
        reduction_factor=96,
        non_linearity="gelu",
        init_weights="houlsby",
        scaling="channel",
        stochastic_depth=0.1,
    ),
    "bapna_firat": BottleneckConfig(
        original_ln_before=True, original_ln_after=False, residual_before_ln=False, ln_before=True
    ),
    "adapter_bert": BottleneckConfig(
        mh_adapter=True,
        bottleneck_size=64,
        non_linearity="gelu_new",
        init_weights="adapter_bert",
        train_norms=True,
    ),
    **_llm_adapters(),
    "lora": LoRAConfig(),
    "dora": DoRAConfig(),
    "vera": VeraConfig(),
    "ia3": IA3Config(),
    "bitfit": BitFitConfig(),
    "prefix_tuning": PrefixTuningConfig(),
    "prefix_tuning_flat": PrefixTuningConfig(flat=True),
    "prompt_tuning": PromptTuningConfig(),
    "loreft": ReftConfig(),
    "noreft": ReftConfig(orthogonality=False),
    "direft": ReftConfig(orthogonality=False, subtract_projection=False),
    "mam": UnionConfig(
        members=(
            PrefixTuningConfig(bottleneck_size=800),
            BottleneckConfig(is_parallel=True, init_weights="mam_adapter", reduction_factor=2, scaling=4.0),
        )
    ),
    "unipelt": UnionConfig(
        members=(
            PrefixTuningConfig(prefix_length=10, use_gating=True),
            BottleneckConfig(original_ln_before=True, reduction_factor=16, use_gating=True),
            LoRAConfig(r=8, alpha=2, use_gating=True),
        )
    ),
}


# AdapterHub's spellings: each makes its named configuration, with the given fields changed
def _spelling(name: str) -> Any:
    return partial(dataclasses.replace, cast(Any, NAMED[name]))


BnConfig = BottleneckConfig
SeqBnConfig = _spelling("seq_bn")
DoubleSeqBnConfig = _spelling("double_seq_bn")
ParBnConfig = _spelling("par_bn")
LoReftConfig = _spelling("loreft")
NoReftConfig = _spelling("noreft")
DiReftConfig = _spelling("direft")
SeqBnInvConfig = _spelling("seq_bn_inv")
DoubleSeqBnInvConfig = _spelling("double_seq_bn_inv")
CompacterConfig = _spelling("compacter")
CompacterPlusPlusConfig = _spelling("compacter++")
AdapterPlusConfig = _spelling("adapter_plus")


def ConfigUnion(*configs: str | Mapping[str, Any] | MethodConfig) -> UnionConfig:
    """AdapterHub's spelling of a union of configurations, each given in any form. Raises AdapterError."""
    return UnionConfig(members=tuple(read_config(config) for config in configs))


def MAMConfig(prefix_tuning: MethodConfig | None = None, adapter: MethodConfig | None = None) -> UnionConfig:
    """AdapterHub's spelling of `mam`, with members changed."""
    return _members("mam", prefix_tuning, adapter)


def UniPELTConfig(
    prefix_tuning: MethodConfig | None = None, adapter: MethodConfig | None = None, lora: MethodConfig | None = None
) -> UnionConfig:
    """AdapterHub's spelling of `unipelt`, with members changed; every member is gated."""
    return _members(
        "unipelt",
        *(member and _changed(member, {"use_gating": True}, "unipelt") for member in (prefix_tuning, adapter, lora)),
    )


def _members(name: str, *given: MethodConfig | None) -> UnionConfig:
    plain = cast(UnionConfig, NAMED[name]).members
    return UnionConfig(members=tuple(own or member for own, member in zip(given, plain, strict=True)))


class AdapterConfig:
    """AdapterHub's spelling of `read_config`."""

    def __init__(self, **fields: Any) -> None:
        flags = ", ".join(f"{name}={value!r}" for name, value in fields.items())
        raise AdapterError(f"AdapterConfig makes no adapter by itself, here and in AdapterHub: write BnConfig({flags})")

    @staticmethod
    def load(config: str | Mapping[str, Any] | MethodConfig, **overrides: Any) -> MethodConfig:
        """A configuration by name, string or mapping, with some fields changed. Raises AdapterError."""
        return read_config(config, overrides)


def read_config(
    config: str | Mapping[str, Any] | MethodConfig, overrides: Mapping[str, Any] | None = None
) -> MethodConfig:
    """A configuration from a name, a config string, a mapping as `write_config` makes it, or a configuration.

    overrides change fields; those of a union's members are written `<index>.<field>`. Raises AdapterError naming
    what is unknown and what is near it.
    """
    overrides = dict(overrides or {})
    if isinstance(config, str):
        texts = members(config)
        if len(texts) > 1:
            return _changed(UnionConfig(members=tuple(_from_string(text, {}) for text in texts)), overrides, config)
        return _from_string(config, overrides)
    if isinstance(config, Mapping):
        fields = {key: _read(value) for key, value in config.items()}
        kind = str(fields.pop("kind", "bottleneck"))
        if kind not in METHODS:
            raise AdapterError(f"adapter method {kind!r} is unknown; the methods are {', '.join(METHODS)}")
        _check_known(METHODS[kind], fields, kind)
        if METHODS[kind] is UnionConfig and "members" not in fields:
            raise AdapterError("union: members are missing; give at least two configurations")
        return _changed(METHODS[kind](**fields), overrides, kind)
    if isinstance(config, tuple(METHODS.values())):
        return _changed(config, overrides, config.kind)
    raise AdapterError(
        f"{config!r} is not an adapter configuration: give a name ({', '.join(NAMED)}), a config string or a "
        "configuration object"
    )


def is_named(text: str) -> bool:
    """Whether a text is a named configuration, an alias, one of them with flags, or a union of such."""
    names = [name_of(part) for part in members(text)]
    return all(name is not None and ALIASES.get(name, name) in NAMED for name in names)


def write_config(config: MethodConfig) -> dict[str, Any]:
    """Plain data with every default written out; `read_config` reads it back."""
    fields = dataclasses.fields(cast(Any, config))
    return {"kind": config.kind, **{field.name: _plain(getattr(config, field.name)) for field in fields}}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return dict(value)
    return write_config(cast(MethodConfig, value)) if isinstance(value, tuple(METHODS.values())) else value


def _read(value: Any) -> Any:
    """A field as `write_config` wrote it: a mapping with a kind is a configuration."""
    if isinstance(value, list | tuple):
        return tuple(_read(item) for item in value)
    return read_config(value) if isinstance(value, Mapping) and "kind" in value else value


def _from_string(text: str, overrides: dict[str, Any]) -> MethodConfig:
    name = name_of(text)
    named = NAMED.get(ALIASES.get(str(name), str(name)))
    if name is None or named is None:
        near = difflib.get_close_matches(name or text, [*NAMED, *ALIASES], n=1)
        raise AdapterError(
            f"adapter configuration {text!r} is unknown{f', did you mean {near[0]!r}?' if near else ''}; there are "
            f"{', '.join(NAMED)} (aliases {', '.join(ALIASES)}), with flags as in 'seq_bn[reduction_factor=8]', and "
            "unions as in 'lora|seq_bn'"
        )
    return _changed(named, {**flags_of(text), **overrides}, name)


def _changed(config: MethodConfig, fields: Mapping[str, Any], name: str) -> MethodConfig:
    if isinstance(config, UnionConfig):
        return _changed_members(config, fields, name)
    _check_known(type(config), fields, name)
    return cast(MethodConfig, dataclasses.replace(cast(Any, config), **fields))


def _changed_members(config: UnionConfig, fields: Mapping[str, Any], name: str) -> UnionConfig:
    """A union with fields of its members changed, each written `<index>.<field>`."""
    changes: list[dict[str, Any]] = [{} for _ in config.members]
    for key, value in fields.items():
        index, _, flag = key.partition(".")
        if not index.isdecimal() or int(index) >= len(changes):
            raise AdapterError(
                f"{name}: unknown flag {key!r}; a union's flags are those of its members, written 0.flag to "
                f"{len(changes) - 1}.flag"
            )
        changes[int(index)][flag] = value
    pairs = zip(config.members, changes, strict=True)
    return UnionConfig(members=tuple(_changed(member, change, name) for member, change in pairs))


def _check_known(config: type[Any], fields: Mapping[str, Any], name: str) -> None:
    known = {field.name for field in dataclasses.fields(config)}
    for key in fields:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; the flags are {', '.join(sorted(known))}"
            raise AdapterError(f"{name}: unknown flag {key!r}{hint}")
