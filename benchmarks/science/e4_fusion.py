"""E4: does a fusion carry what its members know to a small target, and is it the members that do it?

    python benchmarks/science/e4_fusion.py [--quick] [--minutes N] [--seeds 0,1,2] [--only target=irony] [--page]

Pfeiffer et al. 2021 gain 1.3 points over 16 tasks, and 83 % of that on three small ones. Here four sources are trained
once on all their rows (SST-2, TREC, tweet emotion, SICK), and four targets have 200 or 500 labels. Beside the fusions
stand what they must be held against: the target's own adapter, each source with a new head, averages of the sources,
and Fuse(own), which has all weights of a fusion and nothing to transfer. All systems of a target see the same rows.

Targets: tweet irony; tweet stance, its five topics together and the topic as the second text; MRPC; the English tweets
and reviews of NusaX, whose sentiment has three classes and no row of SST-2. STS-B, which shares pairs with MRPC, is no
source. MiniLM has seen paraphrases and NLI in its own training: differences between systems are the point.

Rates are those that do best on the dev rows of two targets with 200 labels and one seed: the head's, the own adapter's,
and that of Fuse(own + sources), which all fusions take. What is frozen rests for all systems alike.
"""

import json
import math
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from statistics import mean
from typing import Any

import room
from rich.progress import Progress
from room import METHODS, Asked, Study, main, page
from rows import Key, Row, by_seed, matching, read
from telling import matched, paired, shown, spread, study_page

from graftwork.build import open_model, recipe_task
from graftwork.compose.grammar import as_composition
from graftwork.evaluate import evaluate
from graftwork.model import AdapterModel
from graftwork.recipe import Recipe
from graftwork.registry.store import Registry
from graftwork.tasks.bootstrap import Interval
from graftwork.train.fit import fit
from graftwork.train.folder import RunFolder
from graftwork.train.job import prepare
from graftwork.train.outcome import TrainResult, counts
from graftwork.train.setup import Setup
from graftwork.train.stages import kept

SOURCES = ("sst2", "trec", "tweet_emotion", "sick")
MORE = ("snips", "cola", "ag_news_small", "banking77")  # of E5, which prunes eight
TARGETS = {  # target -> kind and folder
    "irony": ("classification", "tweet_irony"),
    "stance": ("pair", ""),  # made of the five topics' folders
    "mrpc": ("pair", "mrpc"),
    "sentiment": ("classification", "nusax/en"),
}
KINDS = {"sick": "pair"}
LABELS = (200, 500)
DEV = 200  # rows that pick the epoch, of every target: as few as somebody with so few labels has
EPOCHS = {200: 15, 500: 6}  # 3,000 rows read either way
TOPICS = ("abortion", "atheism", "climate", "feminist", "hillary")
CONTROL, FUSED = "Fuse(own)", "Fuse(own + sources)"
BEST = "best source"  # on dev, with a new head
BARRED = ("own", CONTROL, FUSED)  # what the bar is of
SYSTEMS = (
    "head", "own", *SOURCES, "weight average", "output average", CONTROL, "Fuse(sources)", FUSED,
)  # fmt: skip
OTHERS = tuple(system for system in SYSTEMS if system not in (*BARRED, *SOURCES))
BAR = -0.3  # points, of Fuse(own + sources) less own

TRIED = {"head": (2e-3, 5e-3, 1e-3), "own": (1e-3, 3e-3, 5e-4), FUSED: (2e-4, 1e-3, 5e-4)}  # rates, in this order
TRIED_ON = ("stance", "sentiment")  # with the fewest labels and the first seed
_REST = {"training.base_dropout": False}
OWN, HEAD = {**METHODS["seq_bn"], **_REST}, {**METHODS["head"], **_REST}
FUSE = {**_REST, "training.screen_members": False}  # the sources' cells say it
SOURCE = {**METHODS["seq_bn"], "training.learning_rate": 1e-3, "training.epochs": 4}


def plan(found: Sequence[Row], asked: Asked) -> list[Key]:
    """The rates first. Then few labels first; of many those systems that the bar is of, then the sources, then the
    others; seed after seed: whatever time there is, targets and seeds have as many."""
    targets = ("irony",) if asked.quick else TARGETS
    few, many = LABELS
    parts: list[tuple[int, Sequence[str]]] = [(few, SYSTEMS)] + [(many, one) for one in (BARRED, SOURCES, OTHERS)]
    if asked.quick:
        parts = [(few, ("head", "own", "sst2", "weight average", CONTROL, FUSED))]
    tried = [] if asked.quick else [key for system in TRIED for key in tries(system)]
    return tried + [
        {"target": target, "labels": count, "system": system, "seed": seed}
        for count, systems in parts for seed in asked.seeds for target in targets for system in systems
    ]  # fmt: skip


def tries(system: str) -> list[Key]:
    """The cells that a rate is chosen by. They name the system in another part of their key, and are in no table."""
    return [
        {"target": target, "labels": LABELS[0], "tried": system, "rate": rate, "seed": room.SEEDS[0]}
        for rate in TRIED[system] for target in TRIED_ON
    ]  # fmt: skip


@lru_cache
def rate_of(system: str, asked: Asked) -> float:
    """The rate with the best mean on dev, the earlier in TRIED where two are level. Raises LookupError before all have
    rows, here or among those kept."""
    for folder in (asked.folder, room.RESULTS):
        rows = [row for row in read(folder / "e4_fusion.jsonl") if row["key"].get("tried") == system]
        scores = {rate: [row["dev"] for row in matching(rows, rate=rate)] for rate in TRIED[system]}
        if all(len(own) == len(TRIED_ON) for own in scores.values()):
            return max(scores, key=lambda rate: mean(scores[rate]))
    if asked.quick:
        return TRIED[system][0]
    raise LookupError(f"no learning rate of {system}: run benchmarks/science/e4_fusion.py --only tried='{system}'")


def work(key: Key, asked: Asked) -> Row:
    """Train and score one system."""
    system = str(key["tried"] if "tried" in key else key["system"])
    sources = SOURCES[:2] if asked.quick else SOURCES
    members = {CONTROL: (), "Fuse(sources)": sources, FUSED: sources}
    if system not in members and system != "own":
        return _headed(key, system, asked)
    rate = float(key["rate"]) if "rate" in key else None
    made, result = (
        own(key, asked, rate) if system == "own"
        else fused(key, members[system], system != "Fuse(sources)", asked, rate)
    )  # fmt: skip
    model = room.opened(made, result) if system == "own" else with_members(made, result, registry(asked))
    row = _row(key, made, result.scores["dev"][result.main], model, result.composition, asked)
    return row if system == "own" else row | {"attention": result.attention}


def fused(
    key: Key, sources: Sequence[str], with_own: bool, asked: Asked, rate: float | None = None
) -> tuple[Recipe, TrainResult]:
    """A fusion on a target. Of `own` alone it is over two copies: whatever their shares, their sum is V·own."""
    store, members = registry(asked), [source(name, asked) for name in sources]
    if with_own:
        _, result = own(key, asked)
        members = [kept(store, result), *members]
        members += [] if sources else [store.push(result.package, f"{result.name}-again")]
    told = {**FUSE, "adapter.composition": "fuse", "adapter.members": members,
            "training.learning_rate": rate or rate_of(FUSED, asked)}  # fmt: skip
    made = recipe(key, told, f"fuse-{len(sources)}-{'own' if with_own else 'none'}", asked)
    return made, room.trained(made, store)


def own(key: Key, asked: Asked, rate: float | None = None) -> tuple[Recipe, TrainResult]:
    """The target's own adapter."""
    made = recipe(key, {**OWN, "training.learning_rate": rate or rate_of("own", asked)}, "own", asked)
    return made, room.trained(made)


@lru_cache
def source(name: str, asked: Asked) -> str:
    """The reference of a source, trained on all its rows."""
    room.TASKS.setdefault(name, (KINDS.get(name, "classification"), name))
    return kept(registry(asked), room.trained(room.recipe(name, SOURCE, name=f"source-{name}", asked=asked)))


def registry(asked: Asked) -> Registry:
    """Where the members are."""
    return Registry(asked.runs / "registry")


def recipe(key: Key, told: Mapping[str, Any], name: str, asked: Asked) -> Recipe:
    """A recipe on so many rows of a target, the same for all systems of a seed."""
    target, count, seed = str(key["target"]), int(key["labels"]), int(key["seed"])
    folder = folder_of(target, asked)
    rows = room.drawn(folder / "train.jsonl", count, seed, asked)
    dev = room.drawn(folder / "dev.jsonl", DEV, 0, asked)
    changes = {**told, "training.seed": seed, "training.epochs": EPOCHS[count]}
    return room.recipe(
        target, changes, name=f"{target}-{count}-{seed}-{name}", asked=asked, train_rows=rows, dev_rows=dev
    )


def folder_of(target: str, asked: Asked) -> Path:
    """The folder of a target's rows, which then is one of the room's tasks; that of stance is put together first."""
    kind, name = TARGETS[target]
    folder = room.SHARED / name if name else asked.runs / "data" / "tweet_stance"
    for split in () if name or (folder / "test.jsonl").is_file() else ("train", "dev", "test"):
        folder.mkdir(parents=True, exist_ok=True)
        lines = [(topic, line) for topic in TOPICS for line in
                 (room.SHARED / "tweet_stance" / topic / f"{split}.jsonl").read_text("utf8").splitlines()]  # fmt: skip
        rows = [{"text": row["text"], "text_pair": topic, "label": row["label"]} for topic, line in lines
                if (row := json.loads(line))]  # fmt: skip
        page.write(folder / f"{split}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    room.TASKS[target] = (kind, str(folder))
    return folder


def with_members(made: Recipe, result: TrainResult, store: Registry) -> AdapterModel:
    """The base with a fusion and what it is over."""
    model = open_model(made.model)
    for member in result.package.manifest.members:
        model.install(store.get(member.name), member.name, with_head=False)
    model.install(result.package, result.name)
    return model


def _headed(key: Key, system: str, asked: Asked) -> Row:
    """A new head on the frozen base, on a frozen source, or on an average of the sources."""
    rate = key["rate"] if "rate" in key else rate_of("head", asked)
    told = {**HEAD, "training.learning_rate": rate}
    made = recipe(key, told, f"head-{system.replace(' ', '-')}", asked)
    wanted = () if system == "head" else (system,) if system in SOURCES else SOURCES[:2] if asked.quick else SOURCES
    references = [source(name, asked) for name in wanted]
    job = prepare(made, None)
    for reference in references:
        job.model.install(registry(asked).get(reference), reference, with_head=False)
    tree: dict[str, Callable[[], str | None]] = {
        "head": lambda: None,
        "output average": lambda: f"Average({', '.join(references)})",
        "weight average": lambda: _soup(job.model, references),
    }
    adapters = as_composition(tree[system]() if system in tree else references[0])
    job.model.set_active_adapters(adapters)
    job.model.parts.train_only([("heads", job.setup.name)])
    job = replace(job, setup=Setup(job.setup.name, adapters))
    folder = RunFolder(made.output)
    fit(job, folder, None, shown=Progress(disable=True), checkpoint_seconds=math.inf)
    shutil.rmtree(folder.path, ignore_errors=True)
    scores, _ = evaluate(
        job.model, job.task, job.encoder, job.dev, adapters=adapters, head=job.setup.name, batch_size=64
    )
    return _row(key, made, scores[job.task.main_score], job.model, adapters, asked, made.name)


def _soup(model: AdapterModel, references: Sequence[str]) -> str:
    model.average_adapter("soup", list(references))
    return "soup"


def _row(key: Key, made: Recipe, dev: float, model: AdapterModel, adapters: Any, asked: Asked, head: str = "") -> Row:
    """dev, test, which items are right, and how much trained."""
    task = recipe_task(made, made.task.labels or ())
    found = room.judged(model, task, room.items_of(str(key["target"]), asked), adapters, head or made.name)
    own = counts(model, made.name)
    trained = own["adapter"] + own["fusion"] + own["head"]
    return {"dev": dev, **found, "parameters": {"trained": trained}}


# -- what the rows say ------------------------------------------------------------------------------------------------


def against(found: Sequence[Row], system: str, other: str, **only: Any) -> Interval | None:
    """Points that a system is above another, over targets, sizes and seeds; None before both have rows."""
    tests = []
    for target in TARGETS:
        for count in LABELS:
            if only.get("target", target) != target or only.get("labels", count) != count:
                continue
            by = [by_seed(matching(found, target=target, labels=count, system=one)) for one in (other, system)]
            if pairs := matched(*by):
                tests.append(pairs)
    return paired(tests) if tests else None


def best_source(found: Sequence[Row]) -> list[Row]:
    """For every target, size and seed the row of the source that is best on dev with a new head, as `BEST`."""
    chosen = []
    for key in {(row["key"]["target"], row["key"]["labels"], row["key"]["seed"]) for row in found}:
        rows = [row for name in SOURCES
                for row in matching(found, target=key[0], labels=key[1], seed=key[2], system=name)]  # fmt: skip
        if len(rows) == len(SOURCES):
            best = max(rows, key=lambda row: row["dev"])
            chosen.append({**best, "key": {**best["key"], "system": BEST}})
    return chosen


def result(found: Sequence[Row], asked: Asked) -> str:
    """What the rows say to the bar."""
    gain, transfer = against(found, FUSED, "own"), against(found, FUSED, CONTROL)
    simple = against([*found, *best_source(found)], FUSED, BEST)
    if (
        gain is None
        or transfer is None
        or simple is None
        or len({row["key"]["target"] for row in found}) < len(TARGETS)
    ):
        return ""
    sizes = sorted({row["key"]["labels"] for row in matching(found, system=FUSED)})
    each = [(count, against(found, FUSED, "own", labels=count), len(matching(found, system=FUSED, labels=count)))
            for count in sizes]  # fmt: skip
    apart = "; ".join(f"{count} labels {shown(gap)}, {runs} runs" for count, gap, runs in each if gap)
    return (
        f"With {' and '.join(map(str, sizes))} labels {FUSED} less own: {shown(gain)} points over targets and "
        "seeds; the bar "
        f"{'is met' if gain.value >= BAR else 'is not met'} ({apart}). Less {CONTROL}, of as many weights and no "
        f"sources: {shown(transfer)}. Less the source that is best on dev with a new head, without a gate: "
        f"{shown(simple)}."
    )


HELD = ((FUSED, "own"), (FUSED, CONTROL), (FUSED, BEST), (CONTROL, "own"), ("Fuse(sources)", BEST))


def told(found: Sequence[Row], asked: Asked) -> str:
    """The page."""
    parts = ["Accuracy on the test rows in percent, mean and standard deviation over seeds."]
    rows = [*found, *best_source(found)]
    for count in LABELS:
        if some := matching(rows, labels=count):
            lines = [[system, *(_mean(some, system, target) for target in TARGETS)] for system in (*SYSTEMS, BEST)]
            parts += [f"## {count} labels", page.table(["system", *TARGETS], lines)]
    lines = []
    for one, other in HELD:
        found_each = [*(against(rows, one, other, target=target) for target in TARGETS), against(rows, one, other)]
        lines.append([f"{one} - {other}", *(shown(each) if each else "" for each in found_each)])
    parts += ["## Differences", page.table(["points, 95 % interval", *TARGETS, "all"], lines)]
    columns = ["target", "labels", "system", "mean share of each member", "last layer", "entropy"]
    parts += ["## Where the attention goes", page.table(columns, attended(found))]
    parts += ["## Learning rates", "Accuracy on the dev rows with 200 labels and one seed; the best mean is taken.",
              page.table(["system", "rate", *TRIED_ON], tuned(found))]  # fmt: skip
    return study_page(STUDY, found, asked, *parts)


def tuned(found: Sequence[Row]) -> list[list[str]]:
    """What every rate that was tried has on dev."""
    rows = [(system, rate, matching(found, tried=system, rate=rate)) for system in TRIED for rate in TRIED[system]]
    return [
        [system, f"{rate:g}", *(_shown(row["dev"] for row in own if row["key"]["target"] == one) for one in TRIED_ON)]
        for system, rate, own in rows if own
    ]  # fmt: skip


def _shown(scores: Iterable[float]) -> str:
    return "".join(f"{100 * score:.1f}" for score in scores)


def _mean(rows: Sequence[Row], system: str, target: str) -> str:
    own = [row["test"] for row in matching(rows, system=system, target=target)]
    return spread(own) if own else ""


def attended(found: Sequence[Row]) -> list[list[str]]:
    """By target: each member's share of the attention, over layers and in the last one, mean over seeds."""
    lines = []
    for target in TARGETS:
        for count in LABELS:
            for system in ("Fuse(sources)", FUSED):
                rows = [row["attention"] for row in matching(found, target=target, labels=count, system=system)]
                if rows:
                    every = [mean_of([shares for row in rows for shares in row["sites"].values()])]
                    every.append(mean_of([[*row["sites"].values()][-1] for row in rows]))
                    names = ["own" if "-own@" in one else one.removeprefix("source-").partition("@")[0]
                             for one in rows[0]["members"]]  # fmt: skip
                    said = [
                        ", ".join(f"{name} {share:.2f}" for name, share in zip(names, one, strict=True))
                        for one in every
                    ]
                    entropy = mean(value for row in rows for value in row["entropy"].values())
                    lines.append([target, str(count), system, *said, f"{entropy:.2f}"])
    return lines


def mean_of(shares: Sequence[Sequence[float]]) -> list[float]:
    """The mean of several lists of shares."""
    return [mean(column) for column in zip(*shares, strict=True)]


STUDY = Study(
    "e4_fusion", plan, work, told,
    claim="A fusion carries what its members know to a small target (Pfeiffer et al. 2021: +1.3 points over 16 tasks, "
    "83 % of it on three small ones).",
    design="Sources trained on all rows of SST-2, TREC, tweet emotion and SICK (`seq_bn`, m = 48), by one recipe and "
    "seed, anew on each machine that ran cells. Targets: tweet "
    "irony, tweet stance (five topics together, the topic as second text), MRPC, NusaX English sentiment, with 200 and "
    "500 labels, 200 dev rows, three seeds. Head only, own adapter, each source with a new head, weight and output "
    "average with a new head, Fuse(own), Fuse(sources), Fuse(own + sources); 15 epochs with 200 labels and 6 with 500, "
    "the best on dev kept; the rates of heads, adapters and fusions that do best on the dev rows of two targets with "
    "one seed; what is frozen without dropout.",
    bar="Mean over targets of Fuse(own + sources) - own ≥ -0.3 points; the paired interval of Fuse(own + sources) - "
    "Fuse(own), which has as many weights; where attention goes. Against the best single source: told, no gate.",
    result=result,
)  # fmt: skip

if __name__ == "__main__":
    main(STUDY)
