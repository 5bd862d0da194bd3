"""E6: does a language adapter carry a task to a language without labels (MAD-X, Pfeiffer et al. 2020)?

    python benchmarks/science/e6_madx.py [--quick] [--minutes N] [--seeds 0,1,2] [--only system=swap] [--page]

(a) A made language, by UD POS: English whose token embeddings pass a fixed coupling that nothing is told of. It is a
frozen adapter, `made`, with NICE of large weights and no bottlenecks, at the bottom of every composition that reads the
language; its inverse stands before the vocabulary, as tied embeddings would have it. A head for masked words is trained
once on English and frozen; under it a language adapter for English and one for the made language; the task is UD POS
in Stack(en, pos). (b) From English to real ones that MiniLM's English vocabulary can spell: UD POS to German and
Indonesian, topics of SIB-200 to German, Indonesian, Spanish and Swahili, language adapters from raw text, one for each
language and all seeds.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from statistics import mean
from typing import Any

import room
import torch
from room import QUICK, SHARED, Asked, Study, main, page
from rows import Key, Row, by_seed, matching
from telling import matched, paired, shown, spread, study_page

from graftwork.build import open_model, package_task
from graftwork.compose.grammar import parse
from graftwork.compose.tree import leaves
from graftwork.core.embeddings import EmbeddingAdapter
from graftwork.model import AdapterModel
from graftwork.packing import Provenance
from graftwork.recipe import Recipe, loads, override
from graftwork.registry.store import Registry
from graftwork.schema.sections import ModelSection
from graftwork.train.stages import kept

MADE = "made"
# Deviation of the coupling's weights; those of an adapter begin at 0.02. Chosen so that a task adapter alone loses
# half: on 300 sentences 0.10 leaves 85 % of tags right, 0.12 53 %, 0.13 33 %, 0.15 16 %.
STRENGTH = 0.12
TASKS = {"pos": ("tagging", "ud_pos", ("de", "id")), "topic": ("classification", "sib200", ("de", "id", "es", "sw"))}
MLM: dict[str, Any] = {  # short blocks: a step of 16 x 64 pieces
    "training.batch_size": 16, "training.max_seq_length": 64, "training.epochs": 50, "training.max_steps": 600,
    "training.bf16": True, "training.base_dropout": False,
}  # fmt: skip
LANGUAGE = {"adapter.variant": "seq_bn_inv", "adapter.reduction_factor": 2, "training.learning_rate": 1e-3}
TASK = {"adapter.variant": "seq_bn", "adapter.reduction_factor": 8, "training.learning_rate": 1e-3}
SYSTEMS = ("swap", "kept", "none", "task only", "ready", "in language")
PARTS = ("kept: NICE", "kept: bottlenecks")  # one part of the source's adapter, in the made language
ROWS = 2000  # training rows of a task at most: of 12,035 English sentences, as in E1; SIB-200 has 701
EXACT = 1e-5  # that the inverse of what was trained may be off
DEV_ROWS = 300  # of a task, which pick the epoch
DEV_LINES = 300  # of raw text, to see that a language model still learns
CLOSED = 0.5  # of the gap between the task adapter alone and one trained in the language


def plan(found: Sequence[Row], asked: Asked) -> list[Key]:
    """The made language seed after seed, then the real ones. UD has no German training rows."""
    cells = [("pos", MADE, seed) for seed in asked.seeds]
    cells += (
        []
        if asked.quick
        else [(task, target, seed) for seed in asked.seeds for task in TASKS for target in TASKS[task][2]]
    )
    return [
        {"task": task, "target": target, "system": system, "seed": seed}
        for task, target, seed in cells
        for system in (SYSTEMS if target != MADE or asked.quick else (*SYSTEMS, *PARTS))
        if (task, target, system) != ("pos", "de", "in language")
    ]


def work(key: Key, asked: Asked) -> Row:
    """Train what a system needs and score it on the target's test rows."""
    kind, target, system, seed = str(key["task"]), str(key["target"]), str(key["system"]), int(key["seed"])
    of = seed if target == MADE else room.SEEDS[0]  # adapters of real languages are trained once, as those of MAD-X
    en, other = language("en", of, asked), language(target, of, asked)
    below = {"task only": None, "in language": coupling(asked) if target == MADE else other}
    if system == "ready":
        targets = (MADE,) if target == MADE else TASKS[kind][2]
        below["ready"] = (en, *(language(one, of, asked) for one in targets))
    at_home = system == "in language" and target != MADE
    own = task(kind, below.get(system, en), target if at_home else "en", seed, asked)
    inner = {"swap": [other], "ready": [other], "kept": [en]}.get(system.partition(":")[0], [])
    inner += [other] if at_home else []
    chain = [*([coupling(asked)] if target == MADE else []), *inner, own]
    composition = f"Stack({', '.join(chain)})" if len(chain) > 1 else chain[0]
    silent = (en, system == PARTS[1]) if system in PARTS else None
    folder = "en" if target == MADE else target
    return {"composition": composition, **scored(composition, own, kind, folder, asked, silent)}


def scored(
    composition: str, own: str, kind: str, folder: str, asked: Asked, silent: tuple[str, bool] | None = None
) -> Row:
    """The test score of a composition of packages, which items are right, and what its inverses are off.

    silent: an adapter of which one part passes on what it is given, its NICE (True) or its bottlenecks.
    """
    store, tree = registry(asked), parse(composition)
    model = open_model(ModelSection(name=room.BASE["model.name"]))
    for name in leaves(tree):
        model.install(store.get(name), name, with_head=name == own)
    if silent is not None:
        for module in model.parts.modules_of("adapters", silent[0]).values():
            if isinstance(module, EmbeddingAdapter) == silent[1]:
                for parameter in module.parameters():  # at zero both kinds add nothing to what they are given
                    parameter.data.zero_()
    read = package_task(store.get(own).manifest)
    items = room.items_in(SHARED / TASKS[kind][1] / folder / "test.jsonl", read.kind, asked)
    return {**room.judged(model, read, items, tree, own), "inverse": off(model)}


def off(model: AdapterModel) -> float:
    """The largest |x - f⁻¹(f(x))| of a model's invertible adapters, x drawn from N(0, 1); 0 where there are none."""
    x = torch.randn(4, 64, model.base.config.hidden_size, generator=torch.Generator().manual_seed(0))
    found = [
        float((module.inverse(x + module.moved(x)) - x).abs().max())
        for name in model.parts.adapter_configs
        for module in model.parts.modules_of("adapters", name).values()
        if isinstance(module, EmbeddingAdapter)
    ]
    return max(found, default=0.0)


@lru_cache
def language(name: str, seed: int, asked: Asked) -> str:
    """The reference of a language adapter, trained under the frozen head."""
    text = {**LANGUAGE, "task.head": head(asked), "training.seed": seed, "adapter.role": "language"}
    if name == MADE:
        text |= {"adapter.composition": "stack", "adapter.language_adapter": coupling(asked)}
    return kept(registry(asked), trained(f"language-{name}-{seed}", "en" if name == MADE else name, text, asked))


@lru_cache
def head(asked: Asked) -> str:
    """The reference of the head for masked words, trained once on English."""
    told = {"training.method": "head", "training.learning_rate": 1e-3}
    return kept(registry(asked), trained("mlm", "en", told, asked))


def trained(name: str, folder: str, told: Mapping[str, Any], asked: Asked) -> Any:
    """The run of a language model on raw text."""
    train, dev = (SHARED / "raw_other" / folder / f"{split}.txt" for split in ("train", "dev"))
    files = {"train": str(train), "dev": str(room.drawn(dev, 20 if asked.quick else DEV_LINES, 0, asked))}
    return run(name, "masked_lm", files, {**MLM, **told}, asked)


@lru_cache
def task(kind: str, below: str | tuple[str, ...] | None, folder: str, seed: int, asked: Asked) -> str:
    """The reference of a task adapter, on language adapters or alone."""
    told: dict[str, Any] = {**room.BASE, **TASK, "training.seed": seed}
    if below is not None:
        listed = below if isinstance(below, str) else list(below)
        told |= {"adapter.composition": "stack", "adapter.language_adapter": listed}
    rows = {split: SHARED / TASKS[kind][1] / folder / f"{split}.jsonl" for split in ("train", "dev")}
    counts = {"train": ROWS, "dev": DEV_ROWS} if not asked.quick else room.QUICK_ROWS
    files = {split: str(room.drawn(file, counts[split], 0, asked)) for split, file in rows.items()}
    on = hashlib.sha256(repr((below, folder)).encode()).hexdigest()[:8]
    return kept(registry(asked), run(f"{kind}-{seed}-{on}", TASKS[kind][0], files, told, asked))


def run(name: str, kind: str, files: Mapping[str, str], told: Mapping[str, Any], asked: Asked) -> Any:
    """The run of a recipe, made now or found again."""
    told = {**told, **(QUICK if asked.quick else {})}
    given: dict[str, Any] = {"name": name, "model": {"name": room.BASE["model.name"]}, "task": {"kind": kind}}
    if kind == "tagging":
        given["task"]["labels"] = room.labels("ud_pos")
    made: Recipe = override(loads(json.dumps({**given, "data": dict(files)})), told)
    return room.trained(room.placed(made, asked), registry(asked))


@lru_cache
def coupling(asked: Asked) -> str:
    """The reference of the coupling that makes the language: drawn once, never trained."""
    store = registry(asked)
    if MADE not in {entry.name for entry in store.list()}:
        model = open_model(ModelSection(name=room.BASE["model.name"]))
        model.add_adapter(MADE, "seq_bn_inv[output_adapter=False]")
        draw = torch.Generator().manual_seed(6)
        with torch.no_grad():
            for tensor in model.parts.tensors("adapters", MADE).values():
                tensor.copy_(STRENGTH * torch.randn(tensor.shape, generator=draw) if tensor.dim() > 1 else 0 * tensor)
        store.push(model.package(MADE, provenance=Provenance(role="language")), MADE)
    return f"{MADE}@1"


def registry(asked: Asked) -> Registry:
    """Where the packages are."""
    return Registry(asked.runs / "registry-e6")


def runs(found: Sequence[Row], task: str, target: str, system: str) -> dict[int, Row]:
    """The rows of a system by seed."""
    return by_seed(matching(found, task=task, target=target, system=system))


def result(found: Sequence[Row], asked: Asked) -> str:
    """What the rows say to the bar."""
    made = {system: runs(found, "pos", MADE, system) for system in SYSTEMS}
    if not all(made.values()):
        return ""
    seen = {system: mean(row["test"] for row in own.values()) for system, own in made.items()}
    gap = seen["in language"] - seen["task only"]
    closed = (seen["swap"] - seen["task only"]) / gap if gap > 0 else 0.0
    inverse = max(row["inverse"] for row in found)
    ordered = seen["swap"] > seen["kept"] > seen["none"]
    parts = {"the gap": closed >= CLOSED, "the order": ordered, "the inverse": inverse <= EXACT}
    missed = ", ".join(part for part, held in parts.items() if not held)
    held = f"is not met in {missed}" if missed else "is met"
    said = ", ".join(f"{system} {100 * value:.1f}" for system, value in seen.items())
    steps = " and ".join(
        f"{one} - {other} {shown(paired([matched(made[other], made[one])]))}"
        for one, other in (("swap", "kept"), ("kept", "none"))
    )
    of_kept = {part: runs(found, "pos", MADE, part) for part in PARTS}
    each = ", ".join(f"{part} {100 * mean(row['test'] for row in own.values()):.1f}"
                     for part, own in of_kept.items() if own)  # fmt: skip
    return (
        f"Made language, {min(map(len, made.values()))} seed(s): {said}; swapping closes {closed:.0%} of the gap of "
        f"{100 * gap:.1f} points, {steps}{f' ({each})' if each else ''}; inverses are off by {inverse:.0e} at most: "
        f"the bar {held}.{_real(found)}"
    )


def _real(found: Sequence[Row]) -> str:
    """The real languages, as points of the swap above the other systems."""
    said = []
    for task, (_, _, targets) in TASKS.items():
        for target in targets:
            swap = runs(found, task, target, "swap")
            others = [(one, runs(found, task, target, one)) for one in SYSTEMS[1:]]
            gaps = [f"{one} {shown(paired([matched(own, swap)]))}" for one, own in others if own and swap]
            said += [f" {task}, {target}: swap above {', '.join(gaps)}."] if gaps else []
    return "".join(said)


def told(found: Sequence[Row], asked: Asked) -> str:
    """The page."""
    parts = [
        "Accuracy on the target's test set in percent (of UPOS tags, of topics), mean and standard deviation over "
        "seeds. Points of the swap above a system: paired by seed and sentence, with the 95 % bootstrap interval."
    ]
    for task, target in dict.fromkeys((row["key"]["task"], row["key"]["target"]) for row in found):
        lines, swap = [], runs(found, task, target, "swap")
        for system in (*SYSTEMS, *PARTS):
            if own := runs(found, task, target, system):
                more = shown(paired([matched(own, swap)])) if swap and system != "swap" else ""
                score = spread([row["test"] for row in own.values()])
                lines.append([system, str(len(own)), score, more, next(iter(own.values()))["composition"]])
        parts += [
            f"## {task}, {target}",
            page.table(["system", "seeds", "test", "swap above it", "composition"], lines),
        ]
    return study_page(STUDY, found, asked, *parts)


STUDY = Study(
    "e6_madx", plan, work, told,
    claim="A language adapter under a task adapter takes the task to a language without labels (Pfeiffer et al. 2020).",
    design=(
        "UD POS (2,000 of the 12,035 English training sentences) in Stack(en, pos), carried to a made language (a "
        "fixed coupling on the embeddings), to German and to Indonesian, and the topics of SIB-200 to German, "
        "Indonesian, Spanish and Swahili: target adapter swapped in, source kept, none, task adapter trained alone, "
        "trained over the language adapters of English and of all targets of the task in turn (ready), trained in the "
        "language itself; seeds draw task adapters, and in the made language language adapters too; in the made "
        "language also the source kept by one of its two parts alone. Language and invertible "
        f"adapters (reduction factor 2): {MLM['training.max_steps']:,} steps of masked words on 16 blocks of 64 "
        "pieces, under a head trained once on English and frozen. Learning rates 1e-3 throughout, not tuned."
    ),
    bar=(
        f"Made language: swapping closes at least {CLOSED:.0%} of the gap between the task adapter alone and one "
        "trained in the language, and swap > kept > none; inverses are exact within "
        f"{EXACT:g}. The real ones are told."
    ),
    result=result,
)  # fmt: skip

if __name__ == "__main__":
    main(STUDY)
