"""AdapterHub's flexible heads as ours: `head_config.json` to a configuration, and the tensors of its file to our names.

    heads.NAME.1.weight -> layers.1.weight          heads.NAME.biaffine_arcs.weight -> biaffine_arcs.weight

The numbers agree because the layouts do. What its models do before a head is written into the configuration: T5 scales
the decoder's output by D ** -0.5 where its embeddings are tied; encoder-decoders stand for a row by the last
end-of-sequence token; BEiT always by its pooler; a parser takes entries of `word_starts` for padding that equal the
base's pad id. Reads plain data; opens no file.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from graftwork.core.backbone import Backbone
from graftwork.core.heads import KINDS, NO_ACTIVATION, HeadConfig
from graftwork.core.heads_facts import facts_of
from graftwork.errors import AdapterError

_LANGUAGE = ("masked_lm", "causal_lm", "seq2seq_lm")
_KNOWN = {
    *("head_type", "num_labels", "num_choices", "layers", "activation_function", "label2id", "id2label", "use_pooler"),
    *("bias", "dropout_prob", "multilabel", "vocab_size", "embedding_size", "layer_norm", "shift_labels"),
}


def read_hub_head(written: Mapping[str, Any], backbone: Backbone) -> HeadConfig:
    """The configuration under "config" of a head_config.json, on a base. Raises AdapterError for what has no place."""
    kind = written.get("head_type")
    if kind not in KINDS or kind in ("custom", "sentence_embedding", "regression"):
        raise AdapterError(f"head_type {kind!r} is no flexible head of AdapterHub that is known here")
    if unknown := sorted(map(str, written.keys() - _KNOWN)):
        raise AdapterError(f"head_type {kind!r}: unknown {', '.join(unknown)}")
    facts, model_type = facts_of(backbone), backbone.config.model_type
    outputs = written.get("vocab_size") or written.get("num_choices") or written.get("num_labels")
    given: dict[str, Any] = {
        "kind": "regression" if kind == "classification" and outputs == 1 else kind,
        "num_outputs": outputs or facts.words,
        "layers": written.get("layers", 1),
        "activation": written.get("activation_function") or NO_ACTIVATION,
        "dropout": facts.dropout if written.get("dropout_prob") is None else written["dropout_prob"],
        "pooling": _pooling(written, backbone, facts.pooling) if KINDS[kind].pools else "none",
        "scale": facts.width**-0.5 if model_type in ("t5", "mt5") and facts.tied else 1.0,
    }
    if kind in _LANGUAGE:
        inner = written.get("embedding_size") or facts.width
        given |= {"dropout": 0.0, "tied": facts.tied, "shift": bool(written.get("shift_labels", False))}
        given |= {"width": inner if inner != facts.width else 0, "layer_norm": bool(written.get("layer_norm", False))}
        given |= {"norm_eps": facts.norm_eps} if given["layer_norm"] else {}
    if kind != "dependency_parsing":
        given["bias"] = bool(written.get("bias", kind not in _LANGUAGE))
    else:
        given["word_pad"] = -1 if backbone.config.pad_token_id is None else backbone.config.pad_token_id
    if written.get("multilabel"):
        given["multilabel"] = True
    return HeadConfig(**given, labels=_labels(written, given["kind"]))


def _pooling(written: Mapping[str, Any], backbone: Backbone, habit: str) -> str:
    if backbone.config.model_type == "beit" or written.get("use_pooler"):
        return "pooler"
    return "eos" if backbone.config.is_encoder_decoder else habit


def _labels(written: Mapping[str, Any], kind: str) -> tuple[str, ...]:
    """Labels by number; AdapterHub's own LABEL_0, LABEL_1 are none."""
    by_name: Mapping[str, Any] = written.get("label2id") or {}
    by_number = {int(number): str(name) for name, number in by_name.items()}
    if not KINDS[kind].named or sorted(by_number) != list(range(len(by_number))):
        return ()
    names = tuple(by_number[number] for number in range(len(by_number)))
    return () if names == tuple(f"LABEL_{number}" for number in range(len(names))) else names


def hub_head_tensors(state: Mapping[str, Tensor], name: str, config: HeadConfig) -> dict[str, Tensor]:
    """The tensors of one head of a file, under our names. A tied projection is the base's and is left out.

    Raises AdapterError where the file holds no head of that name.
    """
    prefix = f"heads.{name}."
    own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    if not own:
        raise AdapterError(f"no head {name!r} in the file; its keys begin {', '.join(sorted(state)[:3])}")
    ours = {f"layers.{key}" if key[:1].isdigit() else key: value for key, value in own.items()}
    if config.tied:
        last = max(int(key.split(".")[1]) for key in ours)
        ours.pop(f"layers.{last}.weight", None)
    return ours
