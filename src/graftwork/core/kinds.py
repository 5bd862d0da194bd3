"""The explicit table of methods, the named configurations, and the config strings people write.

    seq_bn[reduction_factor=8,non_linearity=gelu]      a named configuration with some flags changed

To add a method: write `core/<method>.py` with a frozen config that builds an adapter for a site, add it to METHODS.
"""

import ast
import dataclasses
import difflib
import re
from collections.abc import Mapping
from functools import partial
from typing import Any, TypeAlias

from graftwork.core.bottleneck import BottleneckConfig
from graftwork.errors import AdapterError

# the frozen configurations, one a method; each builds what `core/adapter.py` describes
MethodConfig: TypeAlias = BottleneckConfig


METHODS: dict[str, type[BottleneckConfig]] = {"bottleneck": BottleneckConfig}


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


NAMED: dict[str, BottleneckConfig] = {
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
}

# AdapterHub's spellings: each makes its named configuration, with the given fields changed
BnConfig = BottleneckConfig
SeqBnConfig = partial(dataclasses.replace, NAMED["seq_bn"])
DoubleSeqBnConfig = partial(dataclasses.replace, NAMED["double_seq_bn"])
ParBnConfig = partial(dataclasses.replace, NAMED["par_bn"])

ALIASES = {
    "pfeiffer": "seq_bn",
    "houlsby": "double_seq_bn",
    "parallel": "par_bn",
    "scaled_parallel": "scaled_par_bn",
    "pfeiffer+inv": "seq_bn_inv",
    "houlsby+inv": "double_seq_bn_inv",
}

_STRING = re.compile(r"\s*([A-Za-z0-9_+]+)\s*(?:\[(.*)\])?\s*", re.DOTALL)


class AdapterConfig:
    """AdapterHub's spelling of `read_config`."""

    @staticmethod
    def load(config: str | Mapping[str, Any] | MethodConfig, **overrides: Any) -> MethodConfig:
        """A configuration by name, string or mapping, with some fields changed. Raises AdapterError."""
        return read_config(config, overrides)


def read_config(
    config: str | Mapping[str, Any] | MethodConfig, overrides: Mapping[str, Any] | None = None
) -> MethodConfig:
    """A configuration from a name, a config string, a mapping as `write_config` makes it, or a configuration.

    Raises AdapterError naming what is unknown and what is near it.
    """
    overrides = dict(overrides or {})
    if isinstance(config, str):
        return _from_string(config, overrides)
    if isinstance(config, Mapping):
        fields = {**config, **overrides}
        kind = str(fields.pop("kind", "bottleneck"))
        if kind not in METHODS:
            raise AdapterError(f"adapter method {kind!r} is unknown; the methods are {', '.join(METHODS)}")
        return _changed(METHODS[kind](), fields, kind)
    if isinstance(config, tuple(METHODS.values())):
        return _changed(config, overrides, config.kind)
    raise AdapterError(
        f"{config!r} is not an adapter configuration: give a name ({', '.join(NAMED)}), a config string or a "
        "configuration object"
    )


def is_named(text: str) -> bool:
    """Whether a text is a named configuration, an alias, or one of them with flags."""
    match = _STRING.fullmatch(text)
    return match is not None and ALIASES.get(match.group(1), match.group(1)) in NAMED


def write_config(config: MethodConfig) -> dict[str, Any]:
    """Plain data with every default written out; `read_config` reads it back."""
    fields = dataclasses.asdict(config)
    return {"kind": config.kind, **{key: list(v) if isinstance(v, tuple) else v for key, v in fields.items()}}


def _from_string(text: str, overrides: dict[str, Any]) -> MethodConfig:
    match = _STRING.fullmatch(text)
    name = match.group(1) if match else text
    named = NAMED.get(ALIASES.get(name, name))
    if match is None or named is None:
        near = difflib.get_close_matches(name, [*NAMED, *ALIASES], n=1)
        raise AdapterError(
            f"adapter configuration {text!r} is unknown{f', did you mean {near[0]!r}?' if near else ''}; there are "
            f"{', '.join(NAMED)} (aliases {', '.join(ALIASES)}), with flags as in 'seq_bn[reduction_factor=8]'"
        )
    return _changed(named, {**_flags(match.group(2) or "", text), **overrides}, name)


def _flags(text: str, whole: str) -> dict[str, Any]:
    flags: dict[str, Any] = {}
    for part in _parts(text) if text.strip() else ():
        key, equals, value = part.partition("=")
        if not equals or not key.strip() or key.strip() in flags:
            raise AdapterError(f"cannot read {part.strip()!r} in {whole!r}: write each flag once, as key=value")
        flags[key.strip()] = _value(value.strip())
    return flags


def _parts(text: str) -> list[str]:
    """Cut at commas; one inside brackets belongs to the value: leave_out=[0,1], reduction_factor={'0': 8, '1': 4}."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "[({") - (character in "])}")
        if character == "," and not depth:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _value(text: str) -> Any:
    words = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _changed(config: BottleneckConfig, fields: Mapping[str, Any], name: str) -> MethodConfig:
    known = {field.name for field in dataclasses.fields(config)}
    for key in fields:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; the flags are {', '.join(sorted(known))}"
            raise AdapterError(f"{name}: unknown flag {key!r}{hint}")
    return dataclasses.replace(config, **fields)
