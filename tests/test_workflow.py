"""The story on a tiny base: train, push, pull, serve over HTTP, and the answers are those of the model in memory."""

import json
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from graftwork.demo import ROWS, _ready
from graftwork.errors import DataError, UserError
from graftwork.registry.store import Registry
from graftwork.tasks.bootstrap import Interval
from graftwork.train.outcome import TrainResult
from graftwork.workflow import evaluate, evaluate_several, open_engine, predict, push, read_recipe, train
from tests.train.small import model_folder, texts, write

ROWS_OF_SHOP = texts(12)

RECIPE = """
model: {{name: ./base}}
adapter: {{variant: 'seq_bn[reduction_factor=4]'}}
training: {{epochs: 3, batch_size: 4, learning_rate: 1e-2, max_seq_length: 32}}
task: {{kind: classification}}
data: {{train: rows.jsonl, dev: rows.jsonl}}
output: {output}
"""


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Registry, TrainResult]:
    """A trained and pushed package: the folder, the registry and the run."""
    folder = tmp_path_factory.mktemp("story")
    model_folder(folder / "base")
    write(folder / "rows.jsonl", ROWS_OF_SHOP)
    (folder / "mood.yaml").write_text(RECIPE.format(output=folder / "run"))
    registry = Registry(folder / "registry")
    result = train(read_recipe(folder / "mood.yaml"), registry)
    assert push(result, registry) == "mood@1"
    return folder, registry, result


def test_what_is_served_over_http_is_what_was_trained(story: tuple[Path, Registry, TrainResult]) -> None:
    folder, registry, result = story
    engine = open_engine(str(folder / "base"), registry)
    here = predict(engine, ROWS_OF_SHOP, "mood")
    words = ["serve", "--model", str(folder / "base"), "--port", "0", "--registry", str(registry.root)]
    process = subprocess.Popen([sys.executable, "-m", "graftwork", *words], stdout=subprocess.PIPE, text=True)
    try:
        url = _ready(process)
        rows = [{"text": row["text"], "adapters": "mood"} for row in ROWS_OF_SHOP]
        request = urllib.request.Request(f"{url}/v1/predict", json.dumps({"rows": rows}).encode(),
                                         {"content-type": "application/json"})  # fmt: skip
        with urllib.request.urlopen(request, timeout=60) as response:
            served = json.load(response)["answers"]
    finally:
        process.terminate()
        assert process.wait(timeout=30) == 0
    assert not [answer for answer in served if "error" in answer]
    assert [answer["label"] for answer in served] == [answer["label"] for answer in here]
    assert [answer["score"] for answer in served] == pytest.approx([answer["score"] for answer in here], abs=1e-5)
    scores = evaluate(engine, "mood", str(folder / "rows.jsonl")).scores
    assert scores["accuracy"] == pytest.approx(result.scores["dev"]["accuracy"])


def test_evaluation_names_every_row_that_cannot_be_answered(story: tuple[Path, Registry, TrainResult]) -> None:
    folder, registry, _ = story
    engine = open_engine(str(folder / "base"), registry)
    rows = [{"text": "very " * 40, "label": ROWS_OF_SHOP[0]["label"]}, ROWS_OF_SHOP[0]]
    write(folder / "long.jsonl", rows)
    with pytest.raises(DataError, match=r"long\.jsonl, row 1: .*(too long|pieces)"):
        evaluate(engine, "mood", str(folder / "long.jsonl"))
    cut = open_engine(str(folder / "base"), registry, too_long="truncate")
    assert len(evaluate(cut, "mood", str(folder / "long.jsonl")).answers) == 2
    with pytest.raises(UserError, match="no such file"):
        evaluate(engine, "mood", "nowhere.jsonl")


def test_several_are_scored_as_each_is_alone(story: tuple[Path, Registry, TrainResult]) -> None:
    folder, registry, result = story
    push(result, registry, "twin")
    engine, file = open_engine(str(folder / "base"), registry), str(folder / "rows.jsonl")
    asked = ["mood", "twin", "Average(mood, twin)", "none"]
    found = evaluate_several(engine, asked, file, head="twin", resamples=100)
    assert [one.evaluation.asked for one in found] == asked
    assert [one.evaluation.head for one in found] == ["mood@1", "twin@1", "twin@1", "twin@1"]  # only where left open
    for one in found:
        head = None if one.evaluation.asked in ("mood", "twin") else "twin"
        alone = evaluate(engine, one.evaluation.asked, file, head=head)
        assert (alone.composition, alone.scores) == (one.evaluation.composition, one.evaluation.scores)
        chances = [[answer["score"] for answer in each.answers] for each in (alone, one.evaluation)]
        assert chances[0] == pytest.approx(chances[1], abs=1e-5)
    assert found[1].difference == Interval(0.0, 0.0, 0.0)  # the same weights under another name
    confusion = found[0].evaluation.details.confusion
    assert confusion is not None
    assert sum(map(sum, confusion.counts)) == len(ROWS_OF_SHOP)
    (overruled,) = evaluate_several(engine, ["mood"], file, head="twin", resamples=100)
    assert overruled.evaluation.head == "twin@1"


def test_what_several_cannot_be_is_said(story: tuple[Path, Registry, TrainResult]) -> None:
    folder, registry, _ = story
    engine = open_engine(str(folder / "base"), registry)
    with pytest.raises(UserError, match="head mood is for a composition that leaves it open, and each of these has"):
        evaluate_several(engine, ["mood", "Stack(mood, mood)"], str(folder / "rows.jsonl"), head="mood")
    write(folder / "strange.jsonl", [ROWS_OF_SHOP[0], {"text": "x", "label": "ugly"}])
    with pytest.raises(DataError, match=r'strange\.jsonl, row 2: "label" is "ugly", which is not one of the labels'):
        evaluate(engine, "mood", str(folder / "strange.jsonl"))
    with pytest.raises(DataError, match=r'strange\.jsonl, for Stack.mood, mood., row 2: "label" is "ugly"'):
        evaluate_several(engine, ["mood", "Stack(mood, mood)"], str(folder / "strange.jsonl"))
    write(folder / "values.jsonl", [{"text": row["text"], "label": n} for n, row in enumerate(ROWS_OF_SHOP)])
    recipe = RECIPE.replace("epochs: 3", "epochs: 1").replace("classification", "regression").replace("rows", "values")
    (folder / "value.yaml").write_text(recipe.format(output=folder / "value"))
    push(train(read_recipe(folder / "value.yaml"), registry), registry, "value")
    with pytest.raises(UserError, match="these are several: mood for classification, value for regression"):
        evaluate_several(engine, ["mood", "value"], str(folder / "rows.jsonl"))


def test_the_demo_asks_for_a_composition_of_its_own_in_every_row() -> None:
    compositions = [row["adapters"] for row in ROWS]
    assert len(set(compositions)) == len(compositions)
    assert any(one.startswith("Stack(") for one in compositions)
    assert any(one.startswith("Average(") for one in compositions)
