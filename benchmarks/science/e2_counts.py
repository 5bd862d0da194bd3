"""E2: how many parameters have adapters, and what do they weigh? Counted on the meta device, against known figures.

    python benchmarks/science/e2_counts.py [--quick] [--page]

Three numbers for each: what graftwork counts from the modules it would build, what the formula 2·D·M + M + D a module
gives, and what is known of AdapterHub's library (or published). They must be equal. No weights are loaded.
"""

from collections.abc import Sequence

from room import Asked, Study, main, page
from rows import Key, Row
from telling import study_page

from graftwork.core.backbone import Backbone, load_skeleton
from graftwork.sizes import of_fusion, of_method

BERT, LLAMA = "bert-base-uncased", "meta-llama/Meta-Llama-3-8B"


def bottleneck(width: int, inner: int) -> int:
    """2·D·M + M + D."""
    return 2 * width * inner + inner + width


def nice(width: int, factor: int) -> int:
    """F and G of a NICE coupling on halves of the width, each two linears with biases."""
    half = width // 2
    return 2 * (2 * half * (half // factor) + half // factor + half)


# (model, what) -> (by formula, known)
FIGURES = {
    (BERT, "seq_bn[reduction_factor=16]"): (12 * bottleneck(768, 48), 894_528),
    (BERT, "double_seq_bn[reduction_factor=16]"): (24 * bottleneck(768, 48), 1_789_056),
    (BERT, "double_seq_bn[reduction_factor=12]"): (24 * bottleneck(768, 64), 2_379_264),
    (BERT, "seq_bn[reduction_factor=2]"): (12 * bottleneck(768, 384), 7_091_712),
    (BERT, "seq_bn_inv[reduction_factor=2]"): (12 * bottleneck(768, 384) + nice(768, 2), 7_387_776),
    (BERT, "fusion dynamic"): (12 * (3 * 768 * 768 + 2 * 768), 21_252_096),
    (LLAMA, "double_seq_bn[reduction_factor=32]"): (64 * bottleneck(4096, 128), 67_379_200),
    (LLAMA, "seq_bn[reduction_factor=32]"): (32 * bottleneck(4096, 128), 33_689_600),
}


def plan(found: Sequence[Row], asked: Asked) -> list[Key]:
    return [{"model": model, "what": what} for model, what in FIGURES]


def work(key: Key, asked: Asked) -> Row:
    """Count one of them."""
    model, what = str(key["model"]), str(key["what"])
    backbone = Backbone(load_skeleton(model))
    fusion = what.startswith("fusion ")
    counted = of_fusion(backbone, what.removeprefix("fusion ")) if fusion else of_method(backbone, what)
    formula, known = FIGURES[model, what]
    shares = {"share": counted["% of model"], "share_of_layers": counted["% of layers"]}
    return {"counted": counted["parameters"], "formula": formula, "known": known, **shares,
            "note": counted.get("note", "")}  # fmt: skip


def result(found: Sequence[Row], asked: Asked) -> str:
    """What the rows say to the bar."""
    equal = sum(row["counted"] == row["formula"] == row["known"] for row in found)
    return f"{equal} of {len(found)} figures are equal by module, by formula and to the known figure."


def told(found: Sequence[Row], asked: Asked) -> str:
    """The page."""
    lines = [
        [row["key"]["model"], f"`{row['key']['what']}`", f"{row['counted']:,}", f"{row['formula']:,}",
         f"{row['known']:,}", f"{row['share']:.2f}", f"{row['share_of_layers']:.2f}",
         f"{4 * row['counted'] / 1e6:,.2f}", row["note"]]
        for row in found
    ]  # fmt: skip
    head = ["model", "what", "counted", "formula", "known", "% of model", "% of layers", "MB in float32", "note"]
    return study_page(
        STUDY,
        found,
        asked,
        "Without heads; the model is its trunk, so that Llama's output matrix is not in what the share is of.",
        page.table(head, lines),
    )


STUDY = Study(
    "e2_counts", plan, work, told,
    claim="A bottleneck has 2·D·M + M + D parameters, and the library's published sizes follow from it.",
    design="Modules built on the meta device for BERT-base and Llama-3-8B, beside formula and AdapterHub's figures.",
    bar="Exact.",
    result=result,
)  # fmt: skip

if __name__ == "__main__":
    main(STUDY)
