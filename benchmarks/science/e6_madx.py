"""E6: does a language adapter carry a task to a language without labels (MAD-X, Pfeiffer et al. 2020)?

    python benchmarks/science/e6_madx.py [--quick] [--minutes N] [--seeds 0,1,2] [--only system=swap] [--page]

(a) A made language: English whose token embeddings pass a fixed coupling that nothing is told of. It is a frozen
adapter, `made`, with NICE of large weights and no bottlenecks, at the bottom of every composition that reads the
language; its inverse stands before the vocabulary, as tied embeddings would have it. A head for masked words is trained
once on English and frozen; under it a language adapter for English and one for the made language; the task is UD POS
in Stack(en, pos). (b) UD POS from English to German and Indonesian, language adapters from raw text.
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
from graftwork.packing import Provenance
from graftwork.recipe import Recipe, loads, override
from graftwork.registry.store import Registry
from graftwork.schema.sections import ModelSection
from graftwork.train.stages import kept

MADE = "made"
STRENGTH = 0.15  # deviation of the coupling's weights; those of an adapter begin at 0.02
REAL = ("de", "id")
TASK = "ud_pos"
MLM: dict[str, Any] = {  # short blocks: a step of 16 x 64 pieces
    "training.batch_size": 16, "training.max_seq_length": 64, "training.epochs": 50, "training.max_steps": 1500,
    "training.bf16": True, "training.base_dropout": False,
}  # fmt: skip
LANGUAGE = {"adapter.variant": "seq_bn_inv", "adapter.reduction_factor": 2, "training.learning_rate": 1e-3}
POS = {"adapter.variant": "seq_bn", "adapter.reduction_factor": 8, "training.learning_rate": 1e-3}
SYSTEMS = ("swap", "kept", "none", "task only", "ready", "in language")
POS_ROWS = 2000  # of the 12,035 English training sentences, as in E1
DEV_LINES = 300  # of raw text, to see that a language model still learns
CLOSED = 0.5  # of the gap between the task adapter alone and one trained in the language


def plan(found: Sequence[Row], asked: Asked) -> list[Key]:
    """The made language seed after seed, then the real ones. UD has no German training rows."""
    targets = (MADE,) if asked.quick else (MADE, *REAL)
    return [
        {"target": target, "system": system, "seed": seed}
        for target in targets
        for seed in (asked.seeds[:1] if asked.quick else asked.seeds)
        for system in SYSTEMS
        if (target, system) != ("de", "in language")
    ]


def work(key: Key, asked: Asked) -> Row:
    """Train what a system needs and score it on the target's test rows."""
    target, system, seed = str(key["target"]), str(key["system"]), int(key["seed"])
    en, other = language("en", seed, asked), language(target, seed, asked)
    below = {"task only": None, "ready": (en, other), "in language": coupling(asked) if target == MADE else other}
    pos = task(below.get(system, en), target if system == "in language" and target != MADE else "en", seed, asked)
    inner = {"swap": [other], "ready": [other], "kept": [en]}.get(system, [])
    inner += [other] if system == "in language" and target != MADE else []
    chain = [*([coupling(asked)] if target == MADE else []), *inner, pos]
    composition = f"Stack({', '.join(chain)})" if len(chain) > 1 else chain[0]
    return {"composition": composition, **scored(composition, pos, "en" if target == MADE else target, asked)}


def scored(composition: str, pos: str, folder: str, asked: Asked) -> Row:
    """The test score of a composition of packages, and which words are right."""
    store, tree = registry(asked), parse(composition)
    model = open_model(ModelSection(name=room.BASE["model.name"]))
    for name in leaves(tree):
        model.install(store.get(name), name, with_head=name == pos)
    kind = package_task(store.get(pos).manifest)
    items = room.items_in(SHARED / "ud_pos" / folder / "test.jsonl", kind.kind, asked)
    return room.judged(model, kind, items, tree, pos)


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
def task(below: str | tuple[str, ...] | None, folder: str, seed: int, asked: Asked) -> str:
    """The reference of a task adapter, on language adapters or alone."""
    told: dict[str, Any] = {**room.BASE, **POS, "training.seed": seed}
    if below is not None:
        listed = below if isinstance(below, str) else list(below)
        told |= {"adapter.composition": "stack", "adapter.language_adapter": listed}
    rows = {split: SHARED / "ud_pos" / folder / f"{split}.jsonl" for split in ("train", "dev")}
    count = 200 if asked.quick else POS_ROWS
    files = {split: str(room.drawn(file, count, 0, asked)) for split, file in rows.items()}
    on = hashlib.sha256(repr((below, folder)).encode()).hexdigest()[:8]
    return kept(registry(asked), run(f"pos-{seed}-{on}", "tagging", files, told, asked))


def run(name: str, kind: str, files: Mapping[str, str], told: Mapping[str, Any], asked: Asked) -> Any:
    """The run of a recipe, made now or found again."""
    told = {**told, **(QUICK if asked.quick else {})}
    given: dict[str, Any] = {"name": name, "model": {"name": room.BASE["model.name"]}, "task": {"kind": kind}}
    if kind == "tagging":
        given["task"]["labels"] = room.labels(TASK)
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


def runs(found: Sequence[Row], target: str, system: str) -> dict[int, Row]:
    """The rows of a system by seed."""
    return by_seed(matching(found, target=target, system=system))


def result(found: Sequence[Row], asked: Asked) -> str:
    """What the rows say to the bar."""
    made = {system: runs(found, MADE, system) for system in SYSTEMS}
    if not all(made.values()):
        return ""
    seen = {system: mean(row["test"] for row in own.values()) for system, own in made.items()}
    gap = seen["in language"] - seen["task only"]
    closed = (seen["swap"] - seen["task only"]) / gap if gap > 0 else 0.0
    held = "is met" if closed >= CLOSED and seen["swap"] > seen["kept"] > seen["none"] else "is not met"
    said = ", ".join(f"{system} {100 * value:.1f}" for system, value in seen.items())
    steps = " and ".join(
        f"{one} - {other} {shown(paired([matched(made[other], made[one])]))}"
        for one, other in (("swap", "kept"), ("kept", "none"))
    )
    return (
        f"Made language, {min(map(len, made.values()))} seed(s): {said}; swapping closes {closed:.0%} of the gap of "
        f"{100 * gap:.1f} points, {steps}: the bar {held}.{_real(found)}"
    )


def _real(found: Sequence[Row]) -> str:
    """The real languages, as points of the swap above the other systems."""
    said = []
    for target in REAL:
        swap, others = runs(found, target, "swap"), [one for one in SYSTEMS[1:] if runs(found, target, one)]
        if swap and others:
            gaps = [f"{one} {shown(paired([matched(runs(found, target, one), swap)]))}" for one in others]
            said.append(f" {target}: swap above {', '.join(gaps)}.")
    return "".join(said)


def told(found: Sequence[Row], asked: Asked) -> str:
    """The page."""
    parts = [
        "Accuracy of UPOS tags on the target's test set in percent, mean and standard deviation over seeds. Points of "
        "the swap above a system: paired by seed and sentence, with the 95 % bootstrap interval."
    ]
    for target in dict.fromkeys(row["key"]["target"] for row in found):
        lines, swap = [], runs(found, target, "swap")
        for system in SYSTEMS:
            if own := runs(found, target, system):
                more = shown(paired([matched(own, swap)])) if swap and system != "swap" else ""
                score = spread([row["test"] for row in own.values()])
                lines.append([system, str(len(own)), score, more, next(iter(own.values()))["composition"]])
        parts += [f"## {target}", page.table(["system", "seeds", "test", "swap above it", "composition"], lines)]
    return study_page(STUDY, found, asked, *parts)


STUDY = Study(
    "e6_madx", plan, work, told,
    claim="A language adapter under a task adapter takes the task to a language without labels (Pfeiffer et al. 2020).",
    design=(
        "UD POS (2,000 of the 12,035 English training sentences) in Stack(en, pos), carried to a made language (a "
        "fixed coupling on the embeddings), to German and to Indonesian: target adapter swapped in, source kept, none, "
        "task adapter trained alone, trained over both language adapters in turn (ready), trained in the language "
        f"itself. Language and invertible adapters (reduction factor 2): {MLM['training.max_steps']:,} steps of masked "
        "words on 16 blocks of 64 pieces, under a head trained once on English and frozen."
    ),
    bar=(
        f"Made language: swapping closes at least {CLOSED:.0%} of the gap between the task adapter alone and one "
        "trained in the language, and swap > kept > none. The real ones are told."
    ),
    result=result,
)  # fmt: skip

if __name__ == "__main__":
    main(STUDY)
