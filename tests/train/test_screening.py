"""Members of a fusion scored alone before it: as by hand, for every kind of task, and in which words."""

from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from graftwork import recipe as recipes
from graftwork.build import add_task_head, open_encoder, open_model, recipe_task
from graftwork.core.heads import pool
from graftwork.evaluate import evaluate
from graftwork.model import AdapterModel
from graftwork.packing import Provenance
from graftwork.registry.store import Registry
from graftwork.train.attention import measured
from graftwork.train.job import Job, prepare
from graftwork.train.screening import below_best, notes, screen
from tests.adapted import same, shaken, snapshot
from tests.train import small
from tests.train.test_kinds import recipe as recipe_of


def fusion(made: recipes.Recipe, registry: Registry, changes: dict[str, Any] | None = None) -> Job:
    """A job of a fusion over `plain`, an untrained adapter, `noise`, one that shakes what it reads, and `own`, which
    has a head for the task."""
    model = open_model(made.model)
    for name in ("plain", "noise", "own"):
        model.add_adapter(name, "seq_bn[reduction_factor=4]")
    shaken(model.parts.adapters["=noise"], seed=1)
    task = recipe_task(made, made.task.labels or ())
    shaken(model.parts.adapters["=own"], seed=2)
    add_task_head(model, task, "own")
    for name in ("plain", "noise", "own"):
        told = Provenance(task=task.spec) if name == "own" else Provenance()
        registry.push(model.package(name, provenance=told), name)
    adapter = {"composition": "fuse", "members": ["plain", "noise", "own"]}
    return prepare(recipes.override(made, {"adapter": adapter, **(changes or {})}), registry)


def features(made: recipes.Recipe, model: AdapterModel, adapters: str | None, rows: Any, pooling: str) -> numpy.ndarray:
    """What a head reads of texts, one row at a time."""
    encoder, found = open_encoder(made.model.name, 32), []
    model.eval()
    for row in rows:
        with torch.no_grad():
            inputs = encoder.pad([encoder.text(row["text"])])
            hidden = model(**inputs, adapters=adapters, head="none")[0]
            found.append(pool(hidden, inputs["attention_mask"], pooling)[0])
    return torch.stack(found).double().numpy()


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_the_probe_is_scikit_learns_on_what_the_head_would_read(tmp_path: Path, kind: str) -> None:
    fixed = {"task.labels": ["bad", "good"]} if kind == "classification" else {}
    if kind == "regression":
        for split, seed in (("train", 0), ("dev", 1), ("test", 2)):
            rows = [{"text": row["text"], "label": len(row["text"]) / 50} for row in small.texts(40, seed)]
            small.write(tmp_path / f"{split}.jsonl", rows)
    made = small.recipe(tmp_path, {"task.kind": kind, "task.pooling": "mean", **fixed}, dev=40)
    registry = Registry(tmp_path / "registry")
    job = fusion(made, registry)
    found = screen(job)
    assert [row["member"] for row in found] == ["none", "plain@1", "noise@1", "own@1"]
    model, main = open_model(made.model), job.task.main_score
    for row, member in zip(found, [None, *(one.name for one in job.setup.members)], strict=True):
        if member is not None:
            model.install(registry.get(member), member)
        scaler = StandardScaler()
        read = scaler.fit_transform(features(made, model, member, job.data.train, "mean"))
        asked = scaler.transform(features(made, model, member, job.dev, "mean"))
        wanted = [one["label"] for one in job.data.train]
        if kind == "classification":
            answers = [{"label": one} for one in LogisticRegression(max_iter=200).fit(read, wanted).predict(asked)]
        else:
            answers = [{"value": one} for one in Ridge().fit(read, wanted).predict(asked)]
        assert row["probe"] == pytest.approx(job.task.score(answers, job.dev)[main], abs=1e-4)
    base = found[0]["probe"]
    for row in found[1:]:
        assert row["difference"] == pytest.approx(row["probe"] - base)
        assert row["low"] <= row["difference"] <= row["high"]
        assert row["hurts"] is (row["probe"] < base)
    encoder = open_encoder(made.model.name, 32)
    scores, _ = evaluate(model, job.task, encoder, job.dev, adapters="own@1", head="own@1")
    assert [row["own_head"] for row in found[:3]] == [None] * 3
    assert found[3]["own_head"] == pytest.approx(scores[main])


def test_screening_leaves_the_job_as_it_was(tmp_path: Path) -> None:
    job = fusion(small.recipe(tmp_path, {"task.labels": ["bad", "good"]}), Registry(tmp_path / "registry"))
    before, random = snapshot(job.model), torch.get_rng_state()
    first = screen(job)
    assert job.model.training
    assert job.model.base.training
    assert same(before, snapshot(job.model))
    assert torch.equal(torch.get_rng_state(), random)
    assert screen(job) == first
    assert set(job.model.parts.head_configs) == {"mood"}


@pytest.mark.parametrize("name", ["multilabel", "choice", "answering", "masked", "scores"])
def test_every_kind_is_screened_by_what_it_has(tmp_path: Path, name: str) -> None:
    labels = {"multilabel": ["bad", "good"], "choice": ["0", "1", "2"]}.get(name)
    made = recipe_of(tmp_path, name)
    fixed = {"task.labels": labels} if name == "multilabel" else {}
    registry = Registry(tmp_path / "registry")
    if name == "choice":  # its labels are numbers that no recipe may name: no own head
        model = open_model(made.model)
        for member in ("plain", "noise"):
            model.add_adapter(member, "seq_bn[reduction_factor=4]")
            registry.push(model.package(member, provenance=Provenance()), member)
        job = prepare(
            recipes.override(made, {"adapter": {"composition": "fuse", "members": ["plain", "noise"]}}), registry
        )
        assert screen(job) == []
    else:
        found = screen(job := fusion(recipes.override(made, fixed), registry))
        assert [row["probe"] is not None for row in found] == [name == "multilabel"] * 4
        assert found[3]["own_head"] is not None
        assert "hurts" not in "".join(notes(found, "f1")) or name == "multilabel"
    attention = measured(job)
    assert attention["labels"] == {}
    assert all(sum(shares) == pytest.approx(1) for shares in attention["sites"].values())


def test_words_are_probed_and_attended_to_by_tag(tmp_path: Path) -> None:
    for split, count in (("train", 40), ("dev", 12), ("test", 12)):
        rows = [{"tokens": row["text"].split(), "tags": ["mood" if word in (*small.GOOD, *small.BAD) else "else"
                 for word in row["text"].split()]} for row in small.texts(count, seed=len(split))]  # fmt: skip
        small.write(tmp_path / f"{split}.jsonl", rows)
    made = small.recipe(tmp_path, {"task.kind": "tagging", "task.labels": ["else", "mood"]})
    job = fusion(made, Registry(tmp_path / "registry"))
    found = screen(job)
    encoder, model, read, tags = open_encoder(made.model.name, 32), open_model(made.model).eval(), {}, {}
    for split, rows in (("train", job.data.train), ("dev", job.dev)):
        read[split], tags[split] = [], []
        for row in rows:
            encoded = job.task.features(row, encoder)
            with torch.no_grad():
                hidden = model(**encoder.pad([encoded]))[0][0]
            read[split] += [hidden[piece].numpy() for piece in encoded.first_pieces().values()]
            tags[split] += row["tags"]
    scaler = StandardScaler()
    probe = LogisticRegression(max_iter=200).fit(scaler.fit_transform(read["train"]), tags["train"])
    expected = probe.score(scaler.transform(read["dev"]), tags["dev"])
    assert found[0]["probe"] == pytest.approx(expected, abs=1e-2)  # words near the border, by rounding
    assert list(measured(job)["labels"]) == ["else", "mood"]


ROWS = [
    {"member": "none", "probe": 0.8, "own_head": None},
    {"member": "a@1", "probe": 0.7, "own_head": 0.85, "difference": -0.1, "low": -0.2, "high": 0.05, "hurts": True},
    {"member": "b@1", "probe": 0.82, "own_head": None, "difference": 0.02, "low": 0.0, "high": 0.1, "hurts": False},
]


def test_what_is_said_of_it() -> None:
    said = list(notes(ROWS, "accuracy"))
    assert said == [
        "screening, dev accuracy of each member before the fusion: the base alone 0.8000, a@1 0.7000 and 0.8500 with "
        "its own head, b@1 0.8200",
        "member a@1 hurts: with a new linear head it scores 0.7000, below the base alone, 0.8000 (by -0.1000, 95 % "
        "interval -0.2000 to 0.0500, so it may be chance); try the fusion without it",
    ]
    (below,) = below_best(ROWS, 0.84, "accuracy", "mix")
    assert below.startswith("fusion mix is below its best single member: dev accuracy 0.8400, and a@1 alone 0.8500")
    assert not list(below_best(ROWS, 0.85, "accuracy", "mix"))
    assert not list(notes([], "accuracy"))
    assert not list(below_best([], 0.1, "accuracy", "mix"))
