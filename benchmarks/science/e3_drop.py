"""E3: adapters without those of the lowest layers: what it costs in quality, and what it saves in time.

    python benchmarks/science/e3_drop.py [--quick] [--minutes N] [--seeds 0,1,2] [--only part=quality] [--page]

AdapterDrop (Rücklé et al. 2021, RoBERTa-base, 12 layers): with 5 dropped, specialised adapters keep 97.1 % and robust
ones 95.4 % of their GLUE score, plain ones fall off beyond the first layer; a training step is up to 60 % faster than
full fine-tuning's; eight tasks on one text are 39 % faster with 5 dropped. Here, on MiniLM's 6 layers:

    quality   seq_bn m=48 at the rate of E1, 5 epochs; specialised n = 2, 3 (`leave_out`); robust n ~ U{0 … 5}
              (`training.drop`); each run with 0 … 6 layers dropped
    step      one AdamW step of full fine-tuning and of an adapter with 0 … 5 layers dropped, in turns
    prefix    N tasks on one text by Parallel, k layers dropped and so shared, beside the same without a drop
"""

import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from statistics import mean, median
from typing import Any

import e1_parity
import room
import torch
from page import Curve, draw
from room import Asked, Study, main, page
from rows import Key, Row, by_seed, matching
from shared_trunk import answers, arithmetic, text
from telling import matched, paired, shown, spread, study_page
from torch import Tensor, nn

from graftwork.build import open_model
from graftwork.model import AdapterModel
from graftwork.recipe import Recipe
from graftwork.schema.sections import ModelSection
from graftwork.tasks.bootstrap import Interval
from graftwork.timing import alternate, milliseconds, quotients
from graftwork.train.monitor import Monitor
from graftwork.train.outcome import TrainResult

TASKS = ("trec", "sst2")
LAYERS = 6
# variant -> what its recipe says beside E1's seq_bn
VARIANTS: dict[str, dict[str, Any]] = {
    "standard": {},
    "specialised 2": {"adapter.leave_out": [0, 1]},
    "specialised 3": {"adapter.leave_out": [0, 1, 2]},
    "robust": {"training.drop": "random"},
}
TOKENS, BATCH = (32, 64, 128), 32
COUNTS, SHARED = (2, 4, 8), (1, 2, 3)  # tasks on one text; layers dropped
SPECIALISED, ROBUST, BEATS = 0.97, 0.95, 2.0  # kept of undropped at n = 2; points above standard at n = 3
FASTER, OF_ARITHMETIC, EQUAL = 1.4, 0.85, 1e-5
CLOCK = "cpu"


def plan(found: Sequence[Row], asked: Asked) -> list[Key]:
    """Times first, which take minutes; then quality, seed after seed."""
    tokens, counts, shared = (TOKENS[:1], COUNTS[:1], SHARED[-1:]) if asked.quick else (TOKENS, COUNTS, SHARED)
    cells: list[Key] = [{"part": "step", "tokens": count} for count in tokens]
    cells += [{"part": "prefix", "tasks": tasks, "dropped": dropped} for tasks in counts for dropped in shared]
    seeds, tasks, depths = asked.seeds, TASKS, range(LAYERS + 1)
    if asked.quick:
        seeds, tasks, depths = seeds[:1], TASKS[:1], range(0, LAYERS + 1, 3)
    return cells + [
        {"part": "quality", "task": task, "variant": variant, "seed": seed, "dropped": dropped}
        for seed in seeds
        for task in tasks
        for variant in VARIANTS
        for dropped in depths
        if dropped >= left_out(variant)
    ]


def left_out(variant: str) -> int:
    """The fewest layers without adapters that a variant has: with fewer dropped it is the same."""
    return len(VARIANTS[variant].get("adapter.leave_out", ()))


def work(key: Key, asked: Asked) -> Row:
    """One cell."""
    if key["part"] == "step":
        return step(int(key["tokens"]), *((4, 1) if asked.quick else (BATCH, 7)))
    if key["part"] == "prefix":
        return prefix(int(key["tasks"]), int(key["dropped"]), 3 if asked.quick else 25)
    task = str(key["task"])
    made, result, model = _opened(task, str(key["variant"]), int(key["seed"]), asked)
    return room.answered(task, made, result, model, asked, skip_layers=range(int(key["dropped"])))


@lru_cache(maxsize=1)  # the depths of a run come one after another
def _opened(task: str, variant: str, seed: int, asked: Asked) -> tuple[Recipe, TrainResult, AdapterModel]:
    made = recipe(task, variant, seed, asked)
    result = room.trained(made)
    return made, result, room.opened(made, result)


def recipe(task: str, variant: str, seed: int, asked: Asked) -> Recipe:
    """E1's `seq_bn` at its rate, changed as the variant says."""
    name = f"{task}-{variant.replace(' ', '-')}" if VARIANTS[variant] else ""
    return e1_parity.best(task, "seq_bn", seed, asked, VARIANTS[variant], name)


# -- times ------------------------------------------------------------------------------------------------------------


def step(tokens: int, rows: int, rounds: int) -> Row:
    """Milliseconds of a training step, its quotients to full fine-tuning, and what the monitor takes of it."""
    inputs = {"input_ids": torch.randint(1000, 20000, (rows, tokens), generator=torch.Generator().manual_seed(1))}
    full, adapted = model(0), model(1)
    full.requires_grad_(True).train()
    adapted.train_adapter("t0")
    rivals = {"full": stepper(full, inputs, None, range(0))}
    rivals |= {str(dropped): stepper(adapted, inputs, "t0", range(dropped)) for dropped in range(LAYERS)}
    times = alternate(rivals, rounds, CLOCK)
    faster = {name: quotients(times["full"], own) for name, own in times.items()}
    monitor = Monitor.of(adapted)
    assert monitor is not None
    rivals["0"]()
    seen = []
    for _ in range(21):
        start = time.thread_time()
        monitor.see()
        seen.append(1e3 * (time.thread_time() - start))
    return {
        "milliseconds": {name: round(milliseconds(own), 2) for name, own in times.items()},
        "faster": {
            name: [round(value, 4) for value in (one.low, one.middle, one.high)] for name, one in faster.items()
        },
        "monitor": round(median(seen), 4),
    }


def model(adapters: int) -> AdapterModel:
    """MiniLM with a head of two labels and adapters t0, t1, … whose changes can be seen."""
    made = open_model(ModelSection(name=str(room.BASE["model.name"])))
    torch.manual_seed(0)
    for number in range(adapters):
        made.add_adapter(f"t{number}", "seq_bn[reduction_factor=8]")
    for weight in made.parts.parameters():
        nn.init.normal_(weight, std=0.02)
    made.add_classification_head("t0", num_labels=2)
    return made


def stepper(made: AdapterModel, inputs: dict[str, Tensor], adapters: str | None, skip: range) -> Callable[[], None]:
    """One step of AdamW on what trains: forward, backward, clipping, update."""
    weights = [weight for weight in made.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-4)
    labels = torch.arange(len(inputs["input_ids"])) % 2

    def run() -> None:
        optimizer.zero_grad()
        made(**inputs, labels=labels, adapters=adapters, head="t0", skip_layers=skip).loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()

    return run


def prefix(tasks: int, dropped: int, rounds: int) -> Row:
    """How many times as fast N tasks on one text are with k layers dropped, and how far their answers are from those
    of N runs."""
    made, inputs = model(tasks).eval().requires_grad_(False), text(64)
    with torch.inference_mode():
        found = answers(made, inputs, tasks, range(dropped))()
        alone = [
            made(**inputs, adapters=f"t{number}", head="none", skip_layers=range(dropped)).last_hidden_state
            for number in range(tasks)
        ]
        apart = float((found - torch.cat(alone)).abs().max())
        rivals = {str(count): answers(made, inputs, tasks, range(count)) for count in (0, dropped)}
        times = alternate(rivals, rounds, CLOCK)
    gain = quotients(times["0"], times[str(dropped)])
    return {
        "faster": [round(value, 4) for value in (gain.low, gain.middle, gain.high)],
        "arithmetic": round(arithmetic(tasks, dropped, LAYERS), 4),
        "milliseconds": {name: round(milliseconds(own), 3) for name, own in times.items()},
        "apart": apart,
    }


# -- what the rows say ------------------------------------------------------------------------------------------------


def runs(found: Sequence[Row], task: str, variant: str, dropped: int) -> dict[int, Row]:
    """The rows of a variant with so many layers dropped, by seed."""
    depth = max(dropped, left_out(variant))
    return by_seed(matching(found, part="quality", task=task, variant=variant, dropped=depth))


def kept(found: Sequence[Row], variant: str, dropped: int) -> float | None:
    """What is left of the undropped standard adapter's score, mean over tasks and seeds; None before both are there."""
    shares = []
    for task in TASKS:
        whole = runs(found, task, "standard", 0)
        shares += [row["test"] / whole[seed]["test"] for seed, row in runs(found, task, variant, dropped).items()
                   if seed in whole]  # fmt: skip
    return mean(shares) if shares else None


def above(found: Sequence[Row], tasks: Sequence[str], dropped: int) -> Interval | None:
    """robust - standard in points with so many layers dropped, over tasks and the seeds that both have."""
    tests = [matched(runs(found, t, "standard", dropped), runs(found, t, "robust", dropped)) for t in tasks]
    return paired([one for one in tests if one]) if any(tests) else None


def result(found: Sequence[Row], asked: Asked) -> str:
    """What the rows say to the bars."""
    return " ".join(filter(None, (_quality(found), _steps(found), _prefixes(found))))


def _quality(found: Sequence[Row]) -> str:
    special, robust = kept(found, "specialised 2", 2), kept(found, "robust", 2)
    ahead = above(found, TASKS, 3)
    if special is None or robust is None or ahead is None:
        return ""
    met = special >= SPECIALISED and robust >= ROBUST and ahead.value >= BEATS
    seeds = min(len(runs(found, task, variant, 2)) for task in TASKS for variant in VARIANTS)
    robust_3, plain_3, whole = kept(found, "robust", 3), kept(found, "standard", 3), kept(found, "robust", 0)
    more = f"; at n = 3 robust keeps {robust_3:.1%} and standard {plain_3:.1%}" if robust_3 and plain_3 else ""
    undropped = f"; undropped it has {whole:.1%}" if whole else ""
    return (
        f"(a) Of the undropped standard adapter's accuracy, specialised keeps {special:.1%} and robust {robust:.1%} "
        f"with two of six layers dropped{more}{undropped} ({', '.join(TASKS)}, {seeds} seed(s)). With three dropped "
        f"robust is **{shown(ahead)}** points above standard; the bar {'is met' if met else 'is not met'}."
    )


def _steps(found: Sequence[Row]) -> str:
    rows = matching(found, part="step")
    if not rows:
        return ""
    gains = {row["key"]["tokens"]: row["faster"]["0"][1] for row in rows}
    met = min(gains.values()) >= FASTER
    said = ", ".join(f"{gain:.2f} ({tokens} tokens)" for tokens, gain in gains.items())
    three = ", ".join(f"{row['faster']['3'][1]:.2f}" for row in rows)
    return (
        f"(b) A step of an adapter is {said} times as fast as one of full fine-tuning, with three layers dropped "
        f"{three} times; the bar {'is met' if met else 'is not met'}."
    )


def _prefixes(found: Sequence[Row]) -> str:
    rows = matching(found, part="prefix", tasks=COUNTS[-1])
    if not rows:
        return ""
    shares = [row["faster"][1] / row["arithmetic"] for row in rows]
    apart = max(row["apart"] for row in matching(found, part="prefix"))
    met = min(shares) >= OF_ARITHMETIC and apart <= EQUAL
    gains = ", ".join(f"{row['faster'][1]:.2f} (k = {row['key']['dropped']})" for row in rows)
    return (
        f"Eight tasks on one text are {gains} times as fast with k layers dropped, {min(shares):.0%} of arithmetic or "
        "more (where the run without a drop counts as sharing nothing); answers are "
        f"{apart:.0e} at most from those of runs apart; the bar {'is met' if met else 'is not met'}."
    )


# -- the page ---------------------------------------------------------------------------------------------------------


def told(found: Sequence[Row], asked: Asked) -> str:
    """The page."""
    parts = []
    for task in TASKS:
        if matching(found, part="quality", task=task):
            parts += [f"## {task}: test accuracy by layers dropped", _table(found, task), _picture(found, task, asked)]
    if matching(found, part="step"):
        parts += ["## A training step", _step_table(matching(found, part="step"))]
    if matching(found, part="prefix"):
        parts += ["## Several tasks on one text", _prefix_table(matching(found, part="prefix"))]
    return study_page(STUDY, found, asked, *parts)


def _table(found: Sequence[Row], task: str) -> str:
    depths = range(LAYERS + 1)
    lines = []
    for variant in VARIANTS:
        cells = [[row["test"] for row in runs(found, task, variant, depth).values()] for depth in depths]
        lines.append([variant, *(spread(one) if one else "" for one in cells)])
    ahead = [above(found, [task], depth) for depth in depths]
    lines.append(["robust - standard, points", *(shown(one) if one else "" for one in ahead)])
    return page.table(["adapter", *(f"n = {depth}" for depth in depths)], lines)


def _picture(found: Sequence[Row], task: str, asked: Asked) -> str:
    curves = []
    for variant in VARIANTS:
        at = {depth: runs(found, task, variant, depth) for depth in range(LAYERS + 1)}
        points = [(depth, 100 * mean(row["test"] for row in own.values())) for depth, own in at.items() if own]
        curves += [Curve(variant, points)] if points else []
    file = asked.folder / f"e3_drop_{task}.svg"
    note = draw(file, f"{task}: adapters without the lowest layers", "layers dropped", "test accuracy, %", curves)
    return note or f"![accuracy by layers dropped]({file.name})"


def _step_table(rows: Sequence[Row]) -> str:
    names = ["full", *map(str, range(LAYERS))]
    lines = []
    for row in rows:
        times = row["milliseconds"]
        expected = times["full"] / mean(times[str(depth)] for depth in range(LAYERS))
        cells = [
            f"{times[name]:.0f} ms" + ("" if name == "full" else f", {row['faster'][name][1]:.2f}x") for name in names
        ]
        lines.append([str(row["key"]["tokens"]), *cells, f"{expected:.2f}x", f"{row['monitor']:.2f} ms"])
    heads = ["full", *(f"adapter, n = {depth}" for depth in range(LAYERS))]
    return (
        f"CPU time of a step with {BATCH} rows in float32, and how many times as fast as full fine-tuning; robust: n "
        "drawn from 0 to 5. monitor: what `train/monitor.py` takes of a step.\n\n"
        + page.table(["tokens", *heads, "robust", "monitor"], lines)
    )


def _prefix_table(rows: Sequence[Row]) -> str:
    at = {(row["key"]["tasks"], row["key"]["dropped"]): row for row in rows}
    counts, depths = sorted({tasks for tasks, _ in at}), sorted({depth for _, depth in at})

    def cell(tasks: int, depth: int) -> str:
        row = at.get((tasks, depth))
        if row is None:
            return ""
        low, middle, high = row["faster"]
        return f"{middle:.2f} ({low:.2f}-{high:.2f}) / {row['arithmetic']:.2f}, {middle / row['arithmetic']:.0%}"

    return (
        "Times as fast as with no layer dropped, one text of 64 tokens: median (quartiles) / N·L / (k + N·(L - k)), "
        "and the share of it.\n\n"
        + page.table(["tasks", *(f"k = {depth}" for depth in depths)],
                     [[str(tasks), *(cell(tasks, depth) for depth in depths)] for tasks in counts])
    )  # fmt: skip


STUDY = Study(
    "e3_drop", plan, work, told,
    claim="Adapters of the lowest layers can be left out with little loss when training prepared for it, and what is "
    "left out saves time (Rücklé et al. 2021, AdapterDrop).",
    design="(a) TREC and SST-2: `seq_bn` m=48 at E1's rate for 5 epochs (standard), the same without adapters in "
    "the lowest 2 or 3 layers (specialised, `leave_out`), and with n drawn from 0 to 5 for every step (robust, "
    "`training.drop`); rows as in E1; test accuracy with n = 0 … 6 layers dropped, 3 seeds. (b) AdamW steps on MiniLM, "
    "32 rows of 32, 64, 128 tokens; 2, 4, 8 tasks on one text of 64 tokens by `Parallel` with 1, 2, 3 layers dropped. "
    "CPU time, in turns.",
    bar=f"(a) With n = 2 specialised keeps ≥ {SPECIALISED:.0%} and robust ≥ {ROBUST:.0%} of undropped; robust is ≥ "
    f"{BEATS:g} points above standard at n = 3. (b) An adapter's step is ≥ {FASTER} times as fast as full "
    f"fine-tuning's; eight tasks gain ≥ {OF_ARITHMETIC:.0%} of N·L / (k + N·(L - k)), with answers within {EQUAL:g} of "
    "runs apart.",
    result=result,
)  # fmt: skip

if __name__ == "__main__":
    main(STUDY)
