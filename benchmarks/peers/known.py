"""Cases that are left out of the comparison, each with its reason; they are counted in every report, never dropped.

Most are defects of `adapters` 1.3.0, whose numbers are no measure of anyone. The rest is what graftwork does not do.
"""

from families import PLUGINS
from grid import Case, shares

_NO_STATIC = (
    "BartForConditionalGeneration",
    "GPT2LMHeadModel",
    "T5ForConditionalGeneration",
    "ModernBertForMaskedLM",
    "Qwen3ForCausalLM",
)
_T5 = ("t5", "t5-gated", "mt5")


def leave_out(case: Case) -> str:
    """Why a case is not asked for, or "" where it is."""
    return _theirs(case) or _ours(case)


def _theirs(case: Case) -> str:
    no_heads = case.family in PLUGINS or case.family.startswith("clip")
    if no_heads and any(shares(config) for config in case.configs):
        return "adapters loses what an adapter shares when it saves from a model without a place for heads"
    if case.id.endswith("-prefix_leave_out") and case.family in _T5:
        return "adapters: a layer without prefix drops the position bias of all layers after it"
    if case.family.startswith("albert") and "leave_out" in str(case.configs):
        return "adapters counts layers by groups: leaving out group 0 leaves out everything"
    if any(kind in str(case.configs) for kind in ("DoRA", "DvoRA")) and case.family in (
        "gpt2",
        "modernbert",
        "deberta",
    ):
        return "adapters: a linear that makes query, key and value at once never uses DoRA's magnitude"
    return ""


def _ours(case: Case) -> str:
    text = str(case.configs)
    if case.family == "deberta" and "use_gating" in text and any(word in text for word in ("LoRA", "IA3", "UniPELT")):
        return "graftwork refuses gates on thirds of DeBERTa's projection"
    if case.static in _NO_STATIC:
        return (
            "graftwork does not read this class's own head: all of it is the base's embedding, or the class is unknown"
        )
    if case.family.startswith("deberta") and "PromptTuning" in text:
        return "prompts on DeBERTa differ, and it has not been found out which side is right"
    if case.family.startswith("xmod") and "Reft" in text:
        return "graftwork edits X-MOD's layers before their last norm: a difference that is not mended yet"
    return ""
