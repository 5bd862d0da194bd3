"""Kinds of task through the whole machine: a recipe is trained, its package evaluated and served, the scores equal."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from graftwork import asking, workflow
from graftwork.errors import RecipeError
from graftwork.recipe import Recipe, loads, override
from graftwork.registry.store import Registry
from graftwork.train.outcome import TrainResult
from graftwork.train.run import train
from graftwork.train.together import train_together
from tests import tiny
from tests.train import small

Draw = random.Random
Rows = list[dict[str, Any]]


def words(draw: Draw, count: int) -> list[str]:
    return draw.choices([*small.GOOD, *small.BAD, *small.FILLERS], k=count)


def _multilabel(draw: Draw) -> dict[str, Any]:
    said = words(draw, draw.randint(2, 9))
    labels = [name for name, some in (("good", small.GOOD), ("bad", small.BAD)) if set(said) & set(some)]
    return {"text": " ".join(said), "labels": labels}


def _choice(draw: Draw) -> dict[str, Any]:
    right = draw.randrange(3)
    choices = [f"the film was {draw.choice(small.GOOD if place == right else small.BAD)}" for place in range(3)]
    return {"text": "we", "choices": choices, "label": right}


def _answering(draw: Draw) -> dict[str, Any]:
    said = draw.choices(small.FILLERS, k=8)
    said[draw.randrange(8)] = answer = draw.choice(small.GOOD)
    return {"text": "was", "text_pair": " ".join(said), "answers": [answer]}


def _parsing(draw: Draw) -> dict[str, Any]:
    said = words(draw, draw.randint(2, 6))
    return {"tokens": said, "heads": [0, *[1] * (len(said) - 1)], "tags": ["root", *["part"] * (len(said) - 1)]}


def _language(draw: Draw) -> dict[str, Any]:
    return {"text": " ".join(["the", "film", "was", "so", draw.choice(small.GOOD), "and", "so"] * draw.randint(1, 3))}


def _said(draw: Draw) -> dict[str, Any]:
    good = draw.random() < 0.5
    said = draw.choice(small.GOOD if good else small.BAD)
    return {"text": f"{said} {draw.choice(small.FILLERS[:3])}", "target": "so good" if good else "is bad"}


def _pairs(draw: Draw) -> dict[str, Any]:
    said = words(draw, 5)
    return {"text": " ".join(said), "text_pair": " ".join(reversed(said))}


def _similar(draw: Draw) -> dict[str, Any]:
    one, other = draw.choice([small.GOOD, small.BAD]), draw.choice([small.GOOD, small.BAD])
    return {"text": draw.choice(one), "text_pair": draw.choice(other), "label": 1.0 if one == other else -1.0}


# name -> kind, how a row is made, the score at least reached, the rate it is learned with
KINDS: dict[str, tuple[str, Callable[[Draw], dict[str, Any]], dict[str, float], float]] = {
    "multilabel": ("multilabel", _multilabel, {"f1_micro": 0.7}, 1e-2),
    "choice": ("multiple_choice", _choice, {"accuracy": 0.8}, 1e-2),
    "answering": ("question_answering", _answering, {"f1": 0.8, "exact_match": 0.8}, 1e-2),
    "parsing": ("dependency_parsing", _parsing, {"las": 0.8, "uas": 0.8}, 1e-2),
    "masked": ("masked_lm", _language, {"accuracy": 0.4}, 1e-2),
    "causal": ("causal_lm", _language, {"accuracy": 0.4}, 1e-2),
    "spoken": ("seq2seq_lm", _said, {"accuracy": 0.8, "exact_match": 0.6}, 2e-2),
    "pairs": ("similarity", _pairs, {"retrieval": 0.5}, 1e-2),
    "scores": ("similarity", _similar, {"spearman": 0.6}, 1e-2),
}


def recipe(folder: Path, name: str) -> Recipe:
    """A recipe of one kind with its data beside it."""
    kind, make, _, rate = KINDS[name]
    base = small.model_folder(folder / "base")
    if kind == "seq2seq_lm":
        speaker = tiny.model("t5")
        speaker.config.eos_token_id = 3
        speaker.save_pretrained(base)
    tokenizer = small.tokenizer()
    tokenizer.mask_token = "[UNK]"
    tokenizer.save_pretrained(base)
    for split, count in (("train", 160), ("dev", 12), ("test", 12)):
        draw = Draw(f"{name} {split}")
        small.write(folder / f"{split}.jsonl", [make(draw) for _ in range(count)])
    made = loads(
        f"""
        model: {{name: ./base}}
        adapter: {{variant: "seq_bn[reduction_factor=4]"}}
        training: {{epochs: 5, batch_size: 8, learning_rate: {rate}, max_seq_length: 48, base_dropout: false}}
        task: {{kind: {kind}}}
        data: {{train: train.jsonl, dev: dev.jsonl, test: test.jsonl}}
        """,
        folder=folder,
        name="a",
    )
    return override(made, {"output": str(folder / "run")})


def test_rows_of_many_kinds_are_answered_in_one_forward(tmp_path: Path) -> None:
    registry, rows = Registry(tmp_path / "registry"), []
    names = [name for name in KINDS if KINDS[name][0] != "seq2seq_lm"]  # which has another base
    made = recipe(tmp_path / names[0], names[0])
    short = {"training.max_steps": 2, "training.epochs": 1, "model.name": made.model.name}
    recipes = [override(recipe(tmp_path / name, name), short) for name in names]
    for name, result in zip(names, train_together(recipes, registry=registry), strict=True):
        assert isinstance(result, TrainResult)
        workflow.push(result, registry, name)
        lines = (tmp_path / name / "test.jsonl").read_text().splitlines()[:2]
        rows += [asking.asked(json.loads(line), name, None) for line in lines]
    rows.append({"text": "the film", "adapters": "pairs"})  # one text alone, beside pairs
    random.Random(0).shuffle(rows)
    engine = workflow.open_engine(made.model.name, registry)
    together = engine.answer(rows)
    assert engine.counts.forwards == 1
    for row, answer in zip(rows, together, strict=True):
        (alone,) = engine.answer([row])
        assert "error" not in answer, answer
        assert _flat(answer) == pytest.approx(_flat(alone), abs=1e-4), row
    assert {len(answer.get("embedding", [])) for answer in together} == {0, 32}


def _flat(answer: Any, path: str = "") -> dict[str, Any]:
    """Every number and text of an answer by its place."""
    if isinstance(answer, dict):
        inner = answer.items()
    elif isinstance(answer, list):
        inner = enumerate(answer)  # type: ignore[assignment]
    else:
        return {path: answer}
    return {key: value for name, one in inner for key, value in _flat(one, f"{path}.{name}").items()}


@pytest.mark.parametrize("name", KINDS)
def test_a_task_is_trained_evaluated_and_served(name: str, tmp_path: Path) -> None:
    made = recipe(tmp_path, name)
    registry = Registry(tmp_path / "registry")
    result = train(made, registry=registry)
    kind, _, least, _ = KINDS[name]
    for score, value in least.items():
        assert result.scores["test"][score] >= value, result.scores
    assert result.package.manifest.task is not None
    assert result.package.manifest.task.kind == kind
    workflow.push(result, registry)
    engine = workflow.open_engine(made.model.name, registry)
    found = workflow.evaluate(engine, "a", str(made.data.test))
    assert found.main in found.scores
    assert found.scores == pytest.approx(result.scores["test"], abs=1e-3)
    rows = [json.loads(line) for line in (tmp_path / "test.jsonl").read_text().splitlines()[:3]]
    answers = workflow.predict(engine, [asking.asked(row, "a", None) for row in rows], "a")
    assert all("error" not in answer for answer in answers), answers
    json.dumps(answers)


WHOLE = {"training.method": "full", "adapter": {}, "training.base_dropout": True, "training.max_steps": 1}
WEIGHTLESS = ("spoken", "pairs", "scores")  # their heads: the base's own embedding, a mean


@pytest.mark.parametrize("name", [name for name in KINDS if name not in WEIGHTLESS])
def test_a_base_is_tuned_whole_for_every_task(name: str, tmp_path: Path) -> None:
    result = train(override(recipe(tmp_path, name), WHOLE))
    assert result.steps == 1
    assert result.parameters["trained"] >= result.parameters["base"] > result.parameters["head"]


@pytest.mark.parametrize("name", WEIGHTLESS)
def test_a_baseline_whose_package_would_be_empty_is_refused_before_it_trains(name: str, tmp_path: Path) -> None:
    made = override(recipe(tmp_path, name), WHOLE)
    for method in ("full", "head"):
        with pytest.raises(RecipeError, match=f"package of {method} is the head alone, .* {KINDS[name][0]} has no wei"):
            train(override(made, {"training.method": method}))
    assert not Path(made.output).exists()
