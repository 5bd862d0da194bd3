"""Which files the real `adapters` is asked to write: families × methods, compositions, heads. Data, multiplied.

A configuration is a string of that library, or (class, fields), or (class, several) for a union. A setup is an
expression over a, b, c, d in its composition blocks.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from families import CAUSAL, FAMILIES, PAIRS, PLUGINS

ALPHABET = "abcd"


@dataclass(frozen=True)
class Case:
    """One golden case. configs: of a, b, … in order. fusion: fields unlike those of `dynamic`, or a name.

    heads: (name, kind, arguments), each on the adapter of that name. static: a class of transformers with its own head.
    """

    id: str
    family: str
    configs: tuple[Any, ...]
    setup: str = "Stack(a)"
    fusion: Any = "dynamic"
    heads: tuple[tuple[str, str, dict[str, Any]], ...] = ()
    static: str = ""
    attention: str = "sdpa"
    skip_layers: tuple[int, ...] = ()
    headed: bool = False  # saved from a model with a place for heads: other keys
    safetensors: bool = False
    notes: str = field(default="", compare=False)


def bn(**fields: Any) -> tuple[str, dict[str, Any]]:
    return ("SeqBnConfig", {"reduction_factor": 8, **fields})


PAR = ("ParBnConfig", {"reduction_factor": 8})
DOUBLE = ("DoubleSeqBnConfig", {"reduction_factor": 8})
LORA = ("LoRAConfig", {"r": 4, "alpha": 8})
PREFIX = ("PrefixTuningConfig", {"prefix_length": 5, "bottleneck_size": 32})
FLAT = ("PrefixTuningConfig", {"prefix_length": 5, "flat": True})
PROMPT = ("PromptTuningConfig", {"prompt_length": 4})
PLUS = ("AdapterPlusConfig", {"reduction_factor": 16, "stochastic_depth": 0.0})
PHM = ("CompacterPlusPlusConfig", {"reduction_factor": 8})
REFT = {"dropout": 0.0, "r": 2}

BOTTLENECKS: dict[str, Any] = {
    "seq_bn": "seq_bn",
    "double_seq_bn": "double_seq_bn",
    "par_bn": "par_bn",
    "scaled_par_bn": "scaled_par_bn",
    "rf_dict": bn(reduction_factor={"1": 8, "2": 32, "default": 16}),
    "ln_before": bn(ln_before=True),
    "ln_after": bn(ln_after=True),
    "res_before_ln_false": bn(residual_before_ln=False),
    "adapter_res_before_ln": bn(ln_after=True, adapter_residual_before_ln=True),
    "gating": bn(use_gating=True),
    "par_gating_lnafter": ("ParBnConfig", {"reduction_factor": 8, "use_gating": True, "ln_after": True}),
    "double_ln_gated": ("DoubleSeqBnConfig", {"reduction_factor": 8, "ln_before": True, "use_gating": True}),
    "double_par": ("ParBnConfig", {"reduction_factor": 8, "mh_adapter": True, "scaling": 2.0}),
    "channel_par": ("ParBnConfig", {"reduction_factor": 8, "mh_adapter": True, "scaling": "channel"}),
    "mh_only": (
        "BnConfig",
        {
            "mh_adapter": True,
            "output_adapter": False,
            "reduction_factor": 8,
            "non_linearity": "gelu",
            "original_ln_before": True,
        },
    ),
    "mh_scaled": bn(mh_adapter=True, scaling=0.5, residual_before_ln=False),
    "learned_scale": bn(scaling="learned", adapter_residual_before_ln=True),
    "bottom_up": ("DoubleSeqBnConfig", {"reduction_factor": {"0": 4, "default": 64}, "leave_out": [2]}),
    "leave_out": bn(mh_adapter=True, leave_out=[0, 1]),
    "adapterplus": PLUS,
    "act_leakyrelu": bn(non_linearity="leakyrelu"),
    "act_gelu": bn(non_linearity="gelu"),
    "act_gelu_new": bn(non_linearity="gelu_new"),
    "act_swish": bn(non_linearity="swish"),
    "act_tanh": bn(non_linearity="tanh"),
    "cross": bn(mh_adapter=True, cross_adapter=True),
    "cross_double": ("DoubleSeqBnConfig", {"reduction_factor": 8, "cross_adapter": True, "use_gating": True}),
    "compacter": ("CompacterConfig", {"reduction_factor": 8}),
    "compacterpp": PHM,
    "phm_own_rule": ("CompacterConfig", {"reduction_factor": 8, "shared_phm_rule": False}),
    "phm_full_W": ("CompacterConfig", {"reduction_factor": 8, "factorized_phm_W": False}),
    "phm_shared_W": ("CompacterConfig", {"reduction_factor": 8, "shared_W_phm": True}),
    "phm_factor_rule": ("CompacterConfig", {"reduction_factor": 8, "factorized_phm_rule": True}),
    "phm_factor_own": (
        "CompacterConfig",
        {"reduction_factor": 8, "factorized_phm_rule": True, "shared_phm_rule": False},
    ),
    "phm_rank2": ("CompacterConfig", {"reduction_factor": 8, "phm_rank": 2, "phm_dim": 2}),
    "phm_no_bias": ("CompacterPlusPlusConfig", {"reduction_factor": 8, "phm_bias": False, "learn_phm": False}),
    "phm_par": ("ParBnConfig", {"reduction_factor": 8, "phm_layer": True, "init_weights": "bert"}),
    "inv": ("SeqBnInvConfig", {"reduction_factor": 8}),
    "double_inv": ("DoubleSeqBnInvConfig", {"reduction_factor": 8, "inv_adapter_reduction_factor": 4}),
}
LINEARS: dict[str, Any] = {
    "lora": LORA,
    "lora_all": (
        "LoRAConfig",
        {"r": 4, "alpha": 8, "attn_matrices": ["q", "k", "v"], "intermediate_lora": True, "output_lora": True},
    ),
    "lora_gated": ("LoRAConfig", {"r": 4, "alpha": 8, "use_gating": True, "intermediate_lora": True}),
    "lora_k": ("LoRAConfig", {"r": 2, "alpha": 3, "attn_matrices": ["k", "v"], "leave_out": [1]}),
    "lora_ffn": ("LoRAConfig", {"r": 3, "alpha": 6, "selfattn_lora": False, "output_lora": True}),
    "lora_scale": ("LoRAConfig", {"r": 1, "alpha": 2, "composition_mode": "scale", "init_weights": "ia3"}),
    "ia3": "ia3",
    "ia3_gated": ("IA3Config", {"use_gating": True, "output_lora": True}),
    "ia3_alpha": ("IA3Config", {"alpha": 2, "attn_matrices": ["q", "k", "v"]}),
    "dora": ("DoRAConfig", {"r": 4, "alpha": 8, "intermediate_lora": True, "output_lora": True}),
    "dora_scaled": ("DoRAConfig", {"r": 4, "alpha": 3, "attn_matrices": ["q", "k", "v"]}),
    "vera": ("VeraConfig", {"r": 4}),
    "vera_all": ("VeraConfig", {"r": 4, "alpha": 3, "intermediate_lora": True, "output_lora": True}),
    "dvora": ("DvoRAConfig", {"r": 4}),
}
STATES: dict[str, Any] = {
    "loreft": ("LoReftConfig", REFT),
    "noreft": ("NoReftConfig", REFT),
    "reft_suffix": ("LoReftConfig", {**REFT, "suffix_positions": 2, "prefix_positions": 2}),
    "reft_tied": ("NoReftConfig", {**REFT, "suffix_positions": 2, "prefix_positions": 2, "tied_weights": True}),
    "reft_tied_ortho": (
        "LoReftConfig",
        {**REFT, "suffix_positions": 3, "tied_weights": True, "non_linearity": "relu"},
    ),
    "reft_layers": ("NoReftConfig", {**REFT, "layers": [0, 2], "non_linearity": "tanh"}),
}
PREFIXES: dict[str, Any] = {
    "prefix_tuning": PREFIX,
    "prefix_flat": FLAT,
    "prefix_gated": ("PrefixTuningConfig", {**PREFIX[1], "use_gating": True}),
    "prefix_gated_own": ("PrefixTuningConfig", {**FLAT[1], "use_gating": True, "shared_gating": False}),
    "prefix_leave_out": ("PrefixTuningConfig", {**PREFIX[1], "leave_out": [1], "non_linearity": "relu"}),
    "mam": ("MAMConfig", [PREFIX, ("ParBnConfig", {"reduction_factor": 8})]),
    "unipelt": (
        "UniPELTConfig",
        [
            ("PrefixTuningConfig", {"prefix_length": 5, "bottleneck_size": 32, "use_gating": True}),
            ("SeqBnConfig", {"reduction_factor": 8, "use_gating": True}),
            ("LoRAConfig", {"r": 4, "alpha": 2, "use_gating": True}),
        ],
    ),
    "prompt": PROMPT,
    "prompt_bos": ("PromptTuningConfig", {"prompt_length": 3, "combine": "prefix_after_bos"}),
}
UNIONS: dict[str, Any] = {
    "union_bn_lora": ("ConfigUnion", [bn(), LORA]),
    "union_bn_bn": (
        "ConfigUnion",
        [
            ("BnConfig", {"mh_adapter": True, "output_adapter": False, "reduction_factor": 4, "non_linearity": "tanh"}),
            PAR,
        ],
    ),
    "union_inv_ia3": ("ConfigUnion", [("SeqBnInvConfig", {"reduction_factor": 8}), ("IA3Config", {})]),
    "union_reft_lora": ("ConfigUnion", [("LoReftConfig", REFT), LORA]),
}
SHARING = ("CompacterConfig", "CompacterPlusPlusConfig", "VeraConfig", "DvoRAConfig")

# name -> configurations, setup, fusion
SETUPS: dict[str, tuple[tuple[Any, ...], str, Any]] = {
    "stack2": ((bn(), bn()), "Stack(a, b)", None),
    "stack3": ((bn(), DOUBLE, PLUS), "Stack(a, b, c)", None),
    "stack_par_first": ((PAR, bn()), "Stack(a, b)", None),
    "stack_gated": ((bn(use_gating=True), bn(ln_before=True)), "Stack(a, b)", None),
    "stack_leave_out": ((bn(leave_out=[0]), bn(leave_out=[2])), "Stack(a, b)", None),
    "stack_unions": ((("ConfigUnion", [bn(), LORA]), bn()), "Stack(a, b)", None),
    "fuse2": ((bn(), bn()), "Fuse(a, b)", "dynamic"),
    "fuse_static": ((bn(), bn(), bn()), "Fuse(a, b, c)", "static"),
    "fuse_double": ((DOUBLE, DOUBLE), "Fuse(a, b)", "dynamic"),
    "fuse_par": ((PAR, PAR), "Fuse(a, b)", "dynamic"),
    "fuse_mixed": ((PAR, bn()), "Fuse(a, b)", "dynamic"),
    "fuse_mixed_last_par": ((bn(), PAR), "Fuse(a, b)", "dynamic"),
    "fuse_gated": ((bn(use_gating=True), bn(use_gating=True)), "Fuse(a, b)", "dynamic"),
    "fuse_ln": ((bn(ln_before=True, ln_after=True), bn()), "Fuse(a, b)", "dynamic"),
    "fuse_scaled": ((bn(scaling="learned"), bn(scaling=0.5)), "Fuse(a, b)", "static"),
    "fuse_query_before_ln": ((bn(), bn()), "Fuse(a, b)", {"query_before_ln": True}),
    "fuse_residual_before": ((bn(), bn()), "Fuse(a, b)", {"residual_before": True}),
    "fuse_value_after": ((bn(), bn()), "Fuse(a, b)", {"value_before_softmax": False}),
    "fuse_no_query": ((bn(), bn()), "Fuse(a, b)", {"query": False}),
    "fuse_no_key": ((bn(), bn()), "Fuse(a, b)", {"key": False, "residual_before": True}),
    "fuse_stack_first": ((bn(), bn(), bn()), "Fuse(Stack(a, b), c)", "dynamic"),
    "fuse_stack_last": ((bn(), DOUBLE, bn()), "Fuse(a, Stack(b, c))", "dynamic"),
    "fuse_stacks": ((bn(), bn(), bn(), bn()), "Fuse(Stack(a, b), Stack(c, d))", "static"),
    "stack_fuse": ((bn(), bn(), bn()), "Stack(a, Fuse(b, c))", "dynamic"),
    "stack_fuse_first": ((bn(), bn(), bn()), "Stack(Fuse(a, b), c)", "dynamic"),
    "stack_fuse_stack": ((bn(), bn(), bn(), bn()), "Stack(a, Fuse(Stack(b, c), d))", "dynamic"),
    "fuse_inv": ((("SeqBnInvConfig", {"reduction_factor": 8}), bn()), "Fuse(a, b)", "dynamic"),
    "fuse_rf": ((bn(reduction_factor=4), bn(reduction_factor=16)), "Fuse(a, b)", "dynamic"),
    "fuse_leave_out": ((bn(leave_out=[1]), bn()), "Fuse(a, b)", "dynamic"),
    "batchsplit": ((bn(), bn()), "BatchSplit(a, b, batch_sizes=[1, 3])", None),
    "batchsplit_stack": ((bn(), bn(), bn()), "BatchSplit(Stack(a, b), c, batch_sizes=[2, 2])", None),
    "batchsplit3": ((DOUBLE, DOUBLE, DOUBLE), "BatchSplit(a, b, c, batch_sizes=[1, 2, 1])", None),
    "batchsplit_average": ((bn(), bn(), bn()), "BatchSplit(Average(a, b), c, batch_sizes=[2, 2])", None),
    "batchsplit_par": ((PAR, PAR), "BatchSplit(a, b, batch_sizes=[2, 2])", None),
    "stack_batchsplit": ((bn(), bn(), bn()), "Stack(a, BatchSplit(b, c, batch_sizes=[1, 3]))", None),
    "batchsplit_lora": ((LORA, LORA), "BatchSplit(a, b, batch_sizes=[3, 1])", None),
    "batchsplit_ia3": (("ia3", "ia3"), "BatchSplit(a, b, batch_sizes=[3, 1])", None),
    "batchsplit_union": ((("ConfigUnion", [bn(), LORA]),) * 2, "BatchSplit(a, b, batch_sizes=[3, 1])", None),
    "average": ((bn(), bn()), "Average(a, b, weights=[0.3, 0.7])", None),
    "average3": ((bn(), bn(), bn()), "Average(a, b, c)", None),
    "average_par": ((PAR, PAR), "Average(a, b)", None),
    "average_stack": ((bn(), bn(), bn()), "Average(Stack(a, b), c, weights=[0.4, 0.6])", None),
    "stack_average": ((bn(), bn(), bn()), "Stack(a, Average(b, c))", None),
    "average_lora": ((LORA, LORA), "Average(a, b, weights=[0.3, 0.7])", None),
    "stack_lora": ((LORA, LORA), "Stack(a, b)", None),
    "stack_lora3": ((LORA, LORA, LORA), "Stack(a, b, c)", None),
    "stack_reft": ((("LoReftConfig", REFT), ("LoReftConfig", REFT)), "Stack(a, b)", None),
    "parallel": ((bn(), bn()), "Parallel(a, b)", None),
    "parallel3": ((DOUBLE, DOUBLE, DOUBLE), "Parallel(a, b, c)", None),
    "parallel_stack": ((bn(), bn(), bn()), "Parallel(Stack(a, b), c)", None),
    "parallel_par": ((PAR, PAR), "Parallel(a, b)", None),
    "parallel_average": ((bn(), bn(), bn()), "Parallel(Average(a, b), c)", None),
    "stack_parallel": ((bn(), bn(), bn()), "Stack(a, Parallel(b, c))", None),
    "parallel_lora": ((LORA, LORA), "Parallel(a, b)", None),
    "split": ((bn(), bn()), "Split(a, b, splits=[4, 6])", None),
    "split_stack": ((bn(), bn(), bn()), "Split(Stack(a, b), c, splits=[5, 5])", None),
    "split_double": ((DOUBLE, DOUBLE), "Split(a, b, splits=[3, 7])", None),
    "stack_split": ((bn(), bn(), bn()), "Stack(a, Split(b, c, splits=[2, 8]))", None),
    "prefix_stack": ((FLAT, FLAT), "Stack(a, b)", None),
    "prefix_batchsplit": ((PREFIX, PREFIX), "BatchSplit(a, b, batch_sizes=[1, 3])", None),
    "prefix_parallel": ((PREFIX, FLAT), "Parallel(a, b)", None),
    "prefix_and_bn": ((FLAT, bn()), "Stack(a, b)", None),
    "mam_batchsplit": ((("MAMConfig", [FLAT, PAR]),) * 2, "BatchSplit(a, b, batch_sizes=[2, 2])", None),
    "madx": ((("SeqBnInvConfig", {"reduction_factor": 8}), bn()), "Stack(a, b)", None),
    "inv_second": ((bn(), ("SeqBnInvConfig", {"reduction_factor": 8})), "Stack(a, b)", None),
}
_NO_PREFIX = {"modernbert", "gemma2", "gemma3_text", "qwen2", "qwen3", "phi"}
_NO_PARALLEL = {*PLUGINS, "clip-text", "clip-vision", "beit"}
_NO_TOKENS = {"vit", "beit", "clip-vision"}


def shares(config: Any) -> bool:
    """Whether an adapter has parameters at the model, which their saver loses where the model has no head."""
    return isinstance(config, tuple) and (config[0] in SHARING or "phm_layer" in config[1])


def singles() -> Iterator[Case]:
    """One adapter, every method, every family."""
    for family in FAMILIES:
        methods = {**BOTTLENECKS, **LINEARS, **STATES, **UNIONS, **({} if family in _NO_PREFIX else PREFIXES)}
        if family in PLUGINS:
            methods["prompt"] = PROMPT
        for name, config in methods.items():
            eager = name in PREFIXES or "prefix" in name
            yield Case(
                f"m-{family}-{name}", family, (config,), attention="eager" if eager else "sdpa",
                headed=name in ("seq_bn", "lora_all", "prefix_tuning", "inv") or shares(config),
                safetensors=name in ("double_seq_bn", "gating"),
            )  # fmt: skip
        yield Case(f"m-{family}-skip_layers", family, (DOUBLE,), skip_layers=(0, 2))


def compositions() -> Iterator[Case]:
    """Several adapters, every block, every family."""
    for family in FAMILIES:
        for name, (configs, setup, fusion) in SETUPS.items():
            if "Split(" in setup and "splits" in setup and (family in _NO_TOKENS or family in PAIRS):
                continue
            if ("Parallel" in setup and family in _NO_PARALLEL) or ("prefix" in name and family in _NO_PREFIX):
                continue
            if "mam" in name and family in _NO_PREFIX:
                continue
            eager = "prefix" in name or "mam" in name
            yield Case(f"c-{family}-{name}", family, configs, setup, fusion, attention="eager" if eager else "sdpa")


# kind of head -> its arguments, several variants
TEXT_HEADS: dict[str, tuple[str, dict[str, Any]]] = {
    "classification1": ("classification", {"num_labels": 3, "layers": 1}),
    "classification2": ("classification", {"num_labels": 3, "layers": 2}),
    "classification3": ("classification", {"num_labels": 3, "layers": 3, "activation_function": "relu"}),
    "multilabel": ("classification", {"num_labels": 5, "multilabel": True}),
    "regression": ("classification", {"num_labels": 1, "layers": 2, "activation_function": "gelu"}),
    "tagging1": ("tagging", {"num_labels": 5}),
    "tagging2": ("tagging", {"num_labels": 5, "layers": 2}),
    "qa1": ("qa", {}),
    "qa2": ("qa", {"layers": 2, "activation_function": "gelu"}),
    "choice1": ("multiple_choice", {"num_choices": 3, "layers": 1}),
    "choice2": ("multiple_choice", {"num_choices": 3, "layers": 2}),
    "parsing": ("dependency_parsing", {"num_labels": 6}),
    "masked_lm": ("masked_lm", {}),
    "masked_lm1": ("masked_lm", {"layers": 1}),
    "causal_lm": ("causal_lm", {}),
    "causal_lm1": ("causal_lm", {"layers": 1, "activation_function": "gelu_new"}),
    "seq2seq": ("seq2seq_lm", {}),
    "seq2seq2": ("seq2seq_lm", {"layers": 2}),
}
IMAGE_HEADS: dict[str, tuple[str, dict[str, Any]]] = {
    "image1": ("image_classification", {"num_labels": 4}),
    "image2": ("image_classification", {"num_labels": 4, "layers": 2}),
    "image_multilabel": ("image_classification", {"num_labels": 4, "multilabel": True}),
    "image_pooler": ("image_classification", {"num_labels": 4, "use_pooler": True}),
}
_POOLED = ("bert", "roberta", "xlm-roberta", "albert")
# static heads: class -> family
STATIC = {
    "BertForSequenceClassification": "bert",
    "BertForTokenClassification": "bert",
    "BertForQuestionAnswering": "bert",
    "BertForMaskedLM": "bert",
    "RobertaForSequenceClassification": "roberta",
    "RobertaForMaskedLM": "roberta",
    "XLMRobertaForTokenClassification": "xlm-roberta",
    "DistilBertForSequenceClassification": "distilbert",
    "DistilBertForMaskedLM": "distilbert",
    "AlbertForSequenceClassification": "albert",
    "AlbertForMaskedLM": "albert",
    "ElectraForSequenceClassification": "electra",
    "ElectraForTokenClassification": "electra",
    "DebertaV2ForSequenceClassification": "deberta-v2",
    "DebertaV2ForMaskedLM": "deberta-v2",
    "GPT2LMHeadModel": "gpt2",
    "GPT2ForSequenceClassification": "gpt2",
    "LlamaForCausalLM": "llama",
    "LlamaForSequenceClassification": "llama",
    "MistralForCausalLM": "mistral",
    "T5ForConditionalGeneration": "t5",
    "BartForConditionalGeneration": "bart",
    "ViTForImageClassification": "vit",
    "Qwen3ForCausalLM": "qwen3",
    "ModernBertForMaskedLM": "modernbert",
}


def headed() -> Iterator[Case]:
    """Every kind of head on every family that has a model class for it."""
    for family in FAMILIES:
        if family in PLUGINS or family.startswith("clip"):
            continue
        heads = IMAGE_HEADS if family in _NO_TOKENS else TEXT_HEADS
        for name, (kind, arguments) in heads.items():
            yield Case(f"d-{family}-{name}", family, (bn(),), heads=(("a", kind, arguments),), headed=True)
        if family in _POOLED:
            own = {"num_labels": 3, "layers": 1, "use_pooler": True}
            yield Case(f"d-{family}-pooler", family, (bn(),), heads=(("a", "classification", own),), headed=True)
        lm = "causal_lm" if family in CAUSAL else "seq2seq_lm" if family in PAIRS else "masked_lm"
        if family not in _NO_TOKENS:
            inv = ("SeqBnInvConfig", {"reduction_factor": 8})
            yield Case(f"d-{family}-inv_lm", family, (inv,), heads=(("a", lm, {}),), headed=True)
            yield Case(f"d-{family}-madx_lm", family, (inv, bn()), "Stack(a, b)", None, (("b", lm, {}),), headed=True)
            two = (("a", "classification", {"num_labels": 2, "layers": 1}), ("b", "tagging", {"num_labels": 5}))
            yield Case(f"d-{family}-parallel", family, (bn(), bn()), "Parallel(a, b)", None, two, headed=True)
            split = "BatchSplit(a, b, batch_sizes=[2, 2])"
            yield Case(f"d-{family}-batchsplit", family, (bn(), bn()), split, None, two, headed=True)
            fuse = (bn(), bn(), bn())
            yield Case(f"d-{family}-stack_fuse", family, fuse, "Stack(a, Fuse(b, c))", "dynamic",
                       (("c", "classification", {"num_labels": 2}),), headed=True)  # fmt: skip
            for method, config in (("prompt", PROMPT), ("prefix", FLAT), ("loreft", ("LoReftConfig", REFT))):
                one = (("a", "classification", {"num_labels": 2}),)
                yield Case(f"d-{family}-{method}_cls", family, (config,), heads=one, headed=True, attention="eager")
    for name, family in STATIC.items():
        yield Case(f"s-{family}-{name}", family, (bn(),), static=name)
        yield Case(f"s-{family}-{name}-inv", family, (("SeqBnInvConfig", {"reduction_factor": 8}),), static=name)


def cases() -> list[Case]:
    """All of them."""
    return [*singles(), *compositions(), *headed()]
