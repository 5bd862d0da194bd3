"""AdapterHub's prediction heads, flexible and static, as our heads: one configuration and its tensors.

    heads.NAME.1.weight -> head/layers.1.weight        the numbers count dropout and activation, in both

What a file leaves to the model's configuration is taken from `Facts`, else from what the model type usually has:
the rate of dropout, the epsilon of a norm, whether T5 scales what its heads read.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from graftwork.errors import PackageError
from graftwork.registry.foreign.files import read_json, read_weights
from graftwork.registry.foreign.imported import Facts, Ledger
from graftwork.registry.foreign.static_heads import STATIC, StaticHead

CONFIG, SAFE, PICKLED = "head_config.json", "model_head.safetensors", "pytorch_model_head.bin"
_ROWS = ("classification", "multilabel_classification", "image_classification", "multiple_choice")
_TOKENS = ("tagging", "question_answering", "dependency_parsing")
_LANGUAGE = ("masked_lm", "causal_lm", "seq2seq_lm")
_KNOWN = {
    *("head_type", "num_labels", "num_choices", "layers", "activation_function", "label2id", "id2label", "use_pooler"),
    *("bias", "dropout_prob", "multilabel", "vocab_size", "embedding_size", "layer_norm", "shift_labels"),
}
_LAST = ("gpt2", "gptj", "llama", "mistral")  # their classification reads the last token
_ENDS = ("bart", "mbart", "plbart", "t5", "mt5", "whisper")  # theirs the last end-of-sequence token
_EPSILON = {"roberta": 1e-5, "xlm-roberta": 1e-5, "xmod": 1e-5, "deberta": 1e-7, "deberta-v2": 1e-7}
_OUTSIDE = ("prefix_tuning", "shared_parameters", "invertible_adapters", "prompt_tuning")


@dataclass(frozen=True)
class _Source:
    """One head file: what it says, and of which model."""

    where: str
    model_type: str
    width: int
    facts: Facts


def read_head_files(folder: Path, facts: Facts) -> tuple[dict[str, Any], dict[str, Any], Ledger]:
    """The configuration file, our configuration and the ledger with the tensors of a head. Raises PackageError."""
    meta = read_json(folder, CONFIG)
    name, tensors = read_weights(folder, SAFE, PICKLED)
    ledger = Ledger(str(folder / name), tensors)
    source = _Source(str(folder / CONFIG), str(meta.get("model_type")), int(meta.get("hidden_size") or 0), facts)
    written = meta.get("config")
    if isinstance(written, dict):
        head = _flexible(written, str(meta.get("name")), source, ledger)
        _take_flexible(ledger, str(meta.get("name")), str(head["kind"]))
    else:
        row = STATIC.get(str(meta.get("model_class")))
        if row is None:
            known = ", ".join(sorted(STATIC))
            raise PackageError(f"{source.where}: no head is known for {meta.get('model_class')!r}; there are {known}")
        head = _static(row, meta, source, ledger)
    ledger.close()
    return meta, head, ledger


def _flexible(written: Mapping[str, Any], name: str, source: _Source, ledger: Ledger) -> dict[str, Any]:
    kind = written.get("head_type")
    if kind not in (*_ROWS, *_TOKENS, *_LANGUAGE):
        raise PackageError(f"{source.where}: head_type {kind!r} is none of AdapterHub's own; a custom head has no file")
    if unknown := sorted(written.keys() - _KNOWN):
        raise PackageError(f"{source.where}: unknown fields {unknown} of a head of type {kind!r}")
    options: dict[str, Any] = {}
    if kind in _LANGUAGE:
        options |= _language(written, source)
        count = written.get("vocab_size")
    else:
        count = written.get("num_choices" if kind == "multiple_choice" else "num_labels")
        options |= {"multilabel": True} if written.get("multilabel") else {}
    if not isinstance(count, int):
        raise PackageError(f"{source.where}: how many outputs the head has is {count!r}; expected a number")
    if kind == "dependency_parsing" and source.facts.padding is not None:
        options |= {"word_pad": source.facts.padding}
    if kind in _LANGUAGE:
        options |= _tied(ledger, f"heads.{name}.", source)
    if kind != "dependency_parsing" and not _has_bias(ledger, f"heads.{name}."):
        options |= {"bias": False}
    # T5's classification reads what stands before the factor
    scale = 1.0 if kind in ("classification", "multilabel_classification") else _scale(source)
    options |= {"scale": scale} if scale != 1.0 else {}
    return {
        "kind": "regression" if kind == "classification" and count == 1 else kind,
        "num_outputs": count,
        "layers": int(written.get("layers") or 1),
        "activation": written.get("activation_function") or "none",
        "dropout": 0.0 if kind in _LANGUAGE else _dropout(written.get("dropout_prob"), source, ledger),
        "pooling": pooling(kind, bool(written.get("use_pooler")), source.model_type),
        "labels": _labels(written.get("label2id"), kind, count, ledger),
        "options": options,
    }


def _language(written: Mapping[str, Any], source: _Source) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if written.get("layer_norm"):
        options |= {"layer_norm": True, "norm_eps": _epsilon(source)}
    if written.get("shift_labels", written["head_type"] == "causal_lm"):
        options |= {"shift": True}
    inner = written.get("embedding_size")
    return options | ({"width": inner} if inner and inner != source.width else {})


def _static(row: StaticHead, meta: Mapping[str, Any], source: _Source, ledger: Ledger) -> dict[str, Any]:
    """The configuration of a head of transformers; its tensors are taken. Raises PackageError."""
    last = ledger.given.get(f"{row.modules[-1]}.weight")
    if last is None:
        raise PackageError(f"{ledger.where}: {row.modules[-1]}.weight is missing; it holds {sorted(ledger.given)[:10]}")
    tied = row.kind in _LANGUAGE and _same(last, source.facts)
    if tied:
        ledger.ignore(f"{row.modules[-1]}.weight", "the base's own input embedding, which the head shares")
    bias = _take_static(ledger, row)
    count = int(meta.get("num_labels") or last.shape[0]) if row.kind == "multiple_choice" else last.shape[0]
    options: dict[str, Any] = ({} if bias else {"bias": False}) | ({"tied": True} if tied else {})
    if row.norm:
        options |= {"layer_norm": True, "norm_eps": _epsilon(source)}
    options |= {"shift": True} if row.kind == "causal_lm" else {}
    inner = last.shape[1]
    options |= {"width": inner} if row.kind in _LANGUAGE and inner != source.width else {}
    scale = _scale(source) if row.scaled else 1.0
    options |= {"scale": scale} if scale != 1.0 else {}
    return {
        "kind": "regression" if row.kind == "classification" and count == 1 else row.kind,
        "num_outputs": count,
        "layers": len(row.modules),
        "activation": row.activation,
        "dropout": 0.0 if row.kind in _LANGUAGE else _dropout(None, source, ledger),
        "pooling": row.pooling or "none",
        "labels": _labels(meta.get("label2id"), row.kind, count, ledger),
        "options": options,
    }


def _take_flexible(ledger: Ledger, name: str, kind: str) -> None:
    shared = {fate.source for fate in ledger.fates}
    for key in ledger.given:
        steps = key.split(".")
        if steps[0] != "heads" or len(steps) < 3 or key in shared:
            continue
        rest = ".".join(steps[2:])
        if steps[1] == name:
            ledger.take(key, f"head/{rest}" if kind == "dependency_parsing" else f"head/layers.{rest}")
        elif steps[1].startswith(name):
            ledger.ignore(key, f"belongs to head {steps[1]!r}: AdapterHub saves every head whose name begins alike")


def _take_static(ledger: Ledger, row: StaticHead) -> bool:
    """Give the modules of a static head the numbers that our layers have; whether the last one has a bias."""
    language = row.kind in _LANGUAGE
    number = 0 if language else 1
    settled = {fate.source for fate in ledger.fates}
    for at, module in enumerate(row.modules):
        for parameter in ("weight", "bias"):
            if f"{module}.{parameter}" in ledger.given.keys() - settled:
                ledger.take(f"{module}.{parameter}", f"head/layers.{number}.{parameter}", how="renumbered")
        if at < len(row.modules) - 1:
            number += (1 if row.activation == "none" else 2) + (1 if row.norm else 0) + (0 if language else 1)
    if row.norm:
        place = 1 if row.activation == "none" else 2
        for parameter in ("weight", "bias"):
            ledger.take(f"{row.norm}.{parameter}", f"head/layers.{place}.{parameter}", how="renumbered")
    bias = f"head/layers.{number}.bias"
    for key in (*row.copies, "final_logits_bias"):
        if key in ledger.given:
            _settle_bias(ledger, key, bias)
    for key in ledger.given:
        if any(step in _OUTSIDE for step in key.split(".")):
            ledger.ignore(key, "belongs to an adapter: AdapterHub saves with a static head all that is beside the base")
    return bias in ledger.tensors


def _settle_bias(ledger: Ledger, key: str, bias: str) -> None:
    """A bias that is stored beside the module: a copy, the only one, or zeros."""
    value = ledger.given[key].reshape(-1)
    if bias not in ledger.tensors:
        if key == "final_logits_bias" and not torch.any(value):
            ledger.ignore(key, "zeros")
        else:
            ledger.take(key, bias, value, "flattened")
    elif torch.equal(ledger.tensors[bias], value):
        ledger.ignore(key, "a copy of the last layer's bias")
    else:
        raise PackageError(f"{ledger.where}: {key!r} should be a copy of the last layer's bias and differs from it")


def _has_bias(ledger: Ledger, prefix: str) -> bool:
    """Whether the last of the head's layers has a bias; what the configuration says of it came and went."""
    numbers = [key.removeprefix(prefix).split(".")[0] for key in ledger.given if key.startswith(prefix)]
    last = max((int(number) for number in numbers if number.isdecimal()), default=0)
    return f"{prefix}{last}.bias" in ledger.given


def _tied(ledger: Ledger, prefix: str, source: _Source) -> dict[str, Any]:
    """Leave out a vocabulary that is the base's own embedding; a file that has none is tied as well."""
    weights = [key for key in ledger.given if key.startswith(prefix) and key.endswith(".weight")]
    tall = [key for key in weights if source.facts.embedding is not None and _same(ledger.given[key], source.facts)]
    for key in tall:
        ledger.ignore(key, "the base's own input embedding, which the head shares")
    return {"tied": True} if tall else {}


def _same(weight: torch.Tensor, facts: Facts) -> bool:
    own = facts.embedding
    return own is not None and weight.shape == own.shape and torch.equal(weight, own.to(weight))


def pooling(kind: str, use_pooler: bool, model_type: str) -> str:
    """What stands for a row in AdapterHub's heads of a kind on a model type."""
    if kind not in _ROWS:
        return "none"
    if use_pooler or model_type == "beit":
        return "pooler"
    return "last" if model_type in _LAST else "eos" if model_type in _ENDS else "first"


def _labels(label2id: Any, kind: str, count: int, ledger: Ledger) -> list[str]:
    """Names in the order of their numbers; none where the file's map does not fit the outputs."""
    if not isinstance(label2id, dict) or kind in (*_LANGUAGE, "question_answering") or (count == 1):
        return []
    by_number = {number: str(label) for label, number in label2id.items()}
    if sorted(by_number, key=str) != sorted(range(count), key=str):
        ledger.notes.append(f"label2id has {len(label2id)} labels for {count} outputs: names left out")
        return []
    names = [by_number[number] for number in range(count)]
    return [] if names == [f"LABEL_{number}" for number in range(count)] else names  # AdapterHub's own are none


def _dropout(written: Any, source: _Source, ledger: Ledger) -> float:
    if isinstance(written, int | float):
        return float(written)
    if source.facts.dropout is None:
        ledger.notes.append("the head's dropout is that of the base, which was not at hand: 0 (evaluation is the same)")
    return source.facts.dropout or 0.0


def _epsilon(source: _Source) -> float:
    known = source.facts.norm_eps
    return _EPSILON.get(source.model_type, 1e-12) if known is None else known


def _scale(source: _Source) -> float:
    """T5 multiplies what any head reads by D ** -0.5 where it says so: T5 1.1 and mT5 do not."""
    if source.model_type not in ("t5", "mt5"):
        return 1.0
    scaled = source.model_type == "t5" if source.facts.scaled is None else source.facts.scaled
    return float(source.width**-0.5) if scaled else 1.0
