"""E7: how much do the initial weights and the width of an adapter matter?

    python benchmarks/science/e7_robust.py [--quick] [--minutes N] [--seeds 0,1,2] [--only axis=sigma] [--page]

Houlsby et al. 2019, section 3.6: standard deviations of the initial weights below 1e-2 are all as good, larger ones
lose; widths from 8 to 256 differ little. Here: `seq_bn` on TREC with both matrices N(0, σ) cut at 2σ for σ from 1e-7
to 1, three seeds; widths M = 384 / RF for RF 2 … 96, one seed; the activation of adapter-bert (tanh-GELU) and Adapter+
(Steitz & Roth 2024) beside the plain one. Learning rate: that of `seq_bn` in E1. Three epochs.
"""

from collections.abc import Sequence
from statistics import mean

import e1_parity
import room
from room import Asked, Study, main, page
from rows import Key, Row, matching
from telling import spread, study_page

TASK = "trec"
EPOCHS = 3
SIGMAS = (1e-7, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
FACTORS = (2, 4, 8, 16, 32, 96)
VARIANTS = {
    "relu": {"adapter.variant": "seq_bn", "adapter.reduction_factor": 8},
    "gelu_new": {"adapter.variant": "seq_bn", "adapter.reduction_factor": 8, "adapter.non_linearity": "gelu_new"},
    "adapter_plus": {"adapter.variant": "adapter_plus", "adapter.reduction_factor": 8},
    "adapter_plus, RF 96": {"adapter.variant": "adapter_plus"},
}
FLAT, WITHIN = 1e-2, 1.5  # of deviations up to FLAT the means lie WITHIN so many points


def plan(found: Sequence[Row], asked: Asked) -> list[Key]:
    """Deviations, seed after seed; then widths and variants with the first seed, then variants with the others."""
    first, *others = asked.seeds
    sigmas, factors = (SIGMAS[:1], FACTORS[-1:]) if asked.quick else (SIGMAS, FACTORS)
    cells = [("sigma", f"{sigma:g}", first) for sigma in sigmas]
    cells += [("factor", str(factor), first) for factor in factors]
    cells += [("variant", variant, first) for variant in (list(VARIANTS)[:1] if asked.quick else VARIANTS)]
    if not asked.quick:
        cells += [("sigma", f"{sigma:g}", seed) for seed in others for sigma in sigmas]
        cells += [("variant", variant, seed) for seed in others for variant in VARIANTS]
    return [{"axis": axis, "value": value, "seed": seed} for axis, value, seed in cells]


def work(key: Key, asked: Asked) -> Row:
    """Train and score one cell."""
    axis, value = str(key["axis"]), str(key["value"])
    if axis == "sigma":
        changed = {**VARIANTS["relu"], "adapter.init_weights": "houlsby", "adapter.options": {"init_std": float(value)}}
    elif axis == "factor":
        changed = {**VARIANTS["relu"], "adapter.reduction_factor": int(value)}
    else:
        changed = VARIANTS[value]
    rate = e1_parity.rate_of(TASK, "seq_bn", asked)
    own = {"training.learning_rate": rate, "training.seed": key["seed"], "training.epochs": EPOCHS}
    return room.scored(TASK, room.recipe(TASK, changed, own, name=f"{TASK}-e7", asked=asked), asked)


def means(found: Sequence[Row], axis: str) -> dict[str, list[float]]:
    """Test scores in percent by value, in the order of the plan."""
    scores: dict[str, list[float]] = {}
    for row in matching(found, axis=axis):
        scores.setdefault(row["key"]["value"], []).append(100 * row["test"])
    return scores


def result(found: Sequence[Row], asked: Asked) -> str:
    """What the rows say to the bar."""
    flat = {value: mean(scores) for value, scores in means(found, "sigma").items() if float(value) <= FLAT}
    if len(flat) < sum(sigma <= FLAT for sigma in SIGMAS):
        return ""
    between = max(flat.values()) - min(flat.values())
    above = ", ".join(
        f"{mean(scores):.1f} at {value}" for value, scores in means(found, "sigma").items() if float(value) > FLAT
    )
    seeds = min(len(scores) for value, scores in means(found, "sigma").items() if value in flat)
    widths = [mean(scores) for scores in means(found, "factor").values()] or [0.0]
    wide = f"The {len(widths)} widths lie within {max(widths) - min(widths):.1f} points (one seed)."
    return (
        f"For σ up to {FLAT:g} the means over {seeds} seed(s) lie within {between:.2f} points "
        f"({', '.join(f'{value}: {score:.1f}' for value, score in flat.items())}); the bar "
        f"{'is met' if between <= WITHIN else 'is not met'}. Larger: {above or 'not run'}. {wide}"
    )


def told(found: Sequence[Row], asked: Asked) -> str:
    """The page."""
    parts = ["Accuracy on the TREC test set in percent, mean and standard deviation over seeds."]
    titles = {"sigma": "Deviation of the initial weights", "factor": "Reduction factor", "variant": "Variant"}
    for axis, title in titles.items():
        lines = []
        for value in means(found, axis):
            rows = matching(found, axis=axis, value=value)
            lines.append([value, str(len(rows)), spread([row["dev"] for row in rows]),
                          spread([row["test"] for row in rows]), f"{rows[0]['parameters']['adapter']:,}"])  # fmt: skip
        parts += [f"## {title}", page.table([axis, "seeds", "dev", "test", "adapter parameters"], lines)]
    return study_page(STUDY, found, asked, *parts)


STUDY = Study(
    "e7_robust", plan, work, told,
    claim="Initial weights and width are robust: small deviations are all as good, and widths differ little "
    "(Houlsby et al. 2019, section 3.6).",
    design="TREC, `seq_bn`, 3 epochs: both matrices N(0, σ) cut at 2σ, σ from 1e-7 to 1, three seeds; reduction "
    "factors 2 to 96, one seed; tanh-GELU and Adapter+ beside ReLU.",
    bar="Means over seeds for σ ≤ 1e-2 within 1.5 points; the rest is told.",
    result=result,
)  # fmt: skip

if __name__ == "__main__":
    main(STUDY)
