"""E5: what does a fusion lose when only the two most attended members of each layer stay, and what time does it save?

    python benchmarks/science/e5_pruning.py [--quick] [--minutes N] [--seeds 0,1,2] [--only members=8] [--page]

Rücklé et al. 2021, section 5: two of eight members, chosen by their mean activation over the training set, are as
good, and 68 % faster. The fusions are those of E4 over the four sources with 200 labels, and the same over eight.
Attention is measured on the training rows; the weights stay. Time is CPU time of this thread for one batch of 8 rows of
64 tokens, the base alone, the whole fusion and the pruned one in turns, the least of many; by the reference executor,
which runs one member after another as training does, since a folded fusion costs little to begin with.

What arithmetic gives: a member costs 2·d·m + 2·d multiplications a token and layer, the rest of a fusion 3·d² whatever
its members. (The paper's form has a key and a value of every member too, 2·d² each, which is where its 68 % come from.)
"""

import time
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

import e4_fusion
import room
import torch
from e4_fusion import MORE, SOURCES, TARGETS
from room import Asked, Study, main, page
from rows import Key, Row, by_seed, matching
from telling import matched, paired, shown, spread, study_page

from graftwork.build import open_encoder, package_task
from graftwork.compose.tree import Composition, Fuse
from graftwork.evaluate import evaluate
from graftwork.model import AdapterModel
from graftwork.train.attention import held
from graftwork.train.batches import EncodedRows
from graftwork.train.data import load_data

LABELS, KEEP = 200, 2
COUNTS = (4, 8)
WIDTH, BOTTLENECK = 384, 48
LOSS, SAVED = 0.3, 0.6  # points at most; share of what arithmetic gives, at least
ROUNDS, ROWS, TOKENS = 40, 8, 64


def plan(found: Sequence[Row], asked: Asked) -> list[Key]:
    """Seed after seed: the whole fusion over four and over eight, and what is left of it."""
    targets = ("irony",) if asked.quick else TARGETS
    counts = COUNTS[:1] if asked.quick else COUNTS
    return [
        {"target": target, "members": count, "keep": keep, "seed": seed}
        for seed in asked.seeds for target in targets for count in counts for keep in (count, KEEP)
    ]  # fmt: skip


def work(key: Key, asked: Asked) -> Row:
    """Score a fusion, or what is left of it and how long it takes."""
    target, count = str(key["target"]), int(key["members"])
    asks = {"target": target, "labels": LABELS, "seed": key["seed"]}
    made, result = e4_fusion.fused(asks, [*SOURCES, *MORE][:count], False, asked)
    model = e4_fusion.with_members(made, result, e4_fusion.registry(asked)).eval()
    task, encoder = package_task(result.package.manifest), open_encoder("minilm", 128, "truncate")
    whole: Composition = model.parts.fusion_records[result.name].tree
    tree, more = whole, {}
    data = load_data(made)
    if int(key["keep"]) < count:
        rows = EncodedRows(task.encode(data.train, encoder, with_labels=True), encoder)
        batches = [_given(rows, range(start, min(start + 64, len(rows)))) for start in range(0, len(rows), 64)]
        name = model.prune_fusion(model.fusion_attention(result.name, batches), KEEP)
        tree = Fuse(*whole.children, name=name)
        times = _times(model, {"base": None, "whole": whole, "pruned": tree})
        more = {"seconds": times, "held": held(result.attention, KEEP)}
    head = result.name if tree is whole else tree.name
    dev, _ = evaluate(model, task, encoder, data.dev, adapters=tree, head=head)
    found = room.judged(model, task, room.items_of(target, asked), tree, head)
    return {"dev": dev[task.main_score], **found, **more, "parameters": dict(result.parameters)}


def _given(rows: EncodedRows, chosen: Sequence[int]) -> dict[str, torch.Tensor]:
    return {key: value for key, value in rows.__getitems__(chosen).items() if key != "labels"}


def _times(model: AdapterModel, setups: Mapping[str, Composition]) -> dict[str, float]:
    """CPU seconds of this thread for one batch, the least of many turns."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 20000, (ROWS, TOKENS), generator=generator)
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    model.execution, least = "reference", dict.fromkeys(setups, float("inf"))
    with torch.no_grad():
        for _ in range(ROUNDS):
            for name, setup in setups.items():
                begun = time.thread_time()
                model(**given, adapters=setup, head="none")
                least[name] = min(least[name], time.thread_time() - begun)
    model.execution = "auto"
    return least


def arithmetic(members: int) -> float:
    """The share of a fusion's multiplications that goes with all members but two."""
    member = 2 * WIDTH * BOTTLENECK + 2 * WIDTH
    return (members - KEEP) * member / (members * member + 3 * WIDTH**2)


def saved(found: Sequence[Row], members: int) -> float | None:
    """The share of a fusion's time beside the base's that pruning saves: of least times over targets and seeds."""
    rows = [row["seconds"] for row in matching(found, members=members, keep=KEEP) if "seconds" in row]
    if not rows:
        return None
    base, whole, pruned = (min(row[name] for row in rows) for name in ("base", "whole", "pruned"))
    return (whole - pruned) / (whole - base)


def loss(found: Sequence[Row], members: int, target: str = "") -> Any:
    """Points that pruning changes the test score by, over targets and seeds; None before there are rows."""
    tests = []
    for one in (target,) if target else TARGETS:
        by = [by_seed(matching(found, target=one, members=members, keep=keep)) for keep in (members, KEEP)]
        if pairs := matched(*by):
            tests.append(pairs)
    return paired(tests) if tests else None


def result(found: Sequence[Row], asked: Asked) -> str:
    """What the rows say to the bar."""
    said = []
    for members in COUNTS:
        change, share = loss(found, members), saved(found, members)
        if change is None or share is None:
            return ""
        quotient = share / arithmetic(members)
        most = mean(row["held"] for row in matching(found, members=members, keep=KEEP))
        said.append(
            f"Two of {members}: {shown(change)} points ({'met' if change.value >= -LOSS else 'not met'}), the two "
            f"having {most:.0%} of the attention, where an even spread has {KEEP / members:.0%}; {share:.0%} "
            f"of the fusion's time saved, {quotient:.0%} of what arithmetic gives "
            f"({'met' if quotient >= SAVED else 'not met'})."
        )
    return " ".join(said)


def told(found: Sequence[Row], asked: Asked) -> str:
    """The page."""
    lines = []
    for members in COUNTS:
        for target in TARGETS:
            whole, few = (matching(found, target=target, members=members, keep=keep) for keep in (members, KEEP))
            if whole and few:
                change = shown(loss(found, members, target))
                lines.append([target, str(members), spread([row["test"] for row in whole]),
                              spread([row["test"] for row in few]), change])  # fmt: skip
    parts = [
        "Accuracy on the test rows in percent, mean and standard deviation over seeds.",
        page.table(["target", "members", "whole", "two of them", "difference, points"], lines),
    ]
    times = []
    for members in COUNTS:
        rows = [row["seconds"] for row in matching(found, members=members, keep=KEEP) if "seconds" in row]
        if rows and (share := saved(found, members)) is not None:
            least = [f"{1000 * min(row[name] for row in rows):.1f}" for name in ("base", "whole", "pruned")]
            times.append([str(members), *least, f"{share:.0%}", f"{arithmetic(members):.0%}"])
    columns = ["members", "base, ms", "whole, ms", "two of them, ms", "of the fusion's time saved", "arithmetic"]
    parts += [f"## Time of {ROWS} rows of {TOKENS} tokens", page.table(columns, times)]
    return study_page(STUDY, found, asked, *parts)


STUDY = Study(
    "e5_pruning", plan, work, told,
    claim="A fusion keeps its score with its two most attended members alone (Rücklé et al. 2021: two of eight, 68 % "
    "faster).",
    design="E4's fusions over four sources with 200 labels, and the same over eight (with snips, CoLA, AG News, "
    "Banking77); the two most attended on the training rows stay in each layer, weights as they were. CPU time of one "
    "batch by the reference executor.",
    bar="Loss ≤ 0.3 points; of the time that arithmetic gives at least 60 % saved. With 3·d² of a fusion there "
    "whatever its members, arithmetic gives 13 % of four and 30 % of eight.",
    result=result,
)  # fmt: skip

if __name__ == "__main__":
    main(STUDY)
