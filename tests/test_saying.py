"""Texts that a model says, the same alone and beside other compositions, as long as was asked, or refused."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from graftwork import workflow
from graftwork.errors import AdapterError
from graftwork.recipe import override
from graftwork.registry.store import Registry
from graftwork.serve.engine import Engine
from graftwork.tasks.text import TextEncoder
from graftwork.train.run import train
from tests.train import small
from tests.train.test_kinds import recipe


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = tmp_path_factory.mktemp("said")
    registry, made = Registry(folder / "registry"), recipe(folder, "spoken")
    for name, seed in (("a", 0), ("b", 1)):
        changes = {"training.max_steps": 100, "training.seed": seed, "output": str(folder / name)}
        workflow.push(train(override(made, changes), registry=registry), registry, name)
    kinds = recipe(folder / "other", "multilabel")
    changes = {"model.name": made.model.name, "training.max_steps": 1}
    workflow.push(train(override(kinds, changes), registry=registry), registry, "labels")
    return workflow.open_engine(made.model.name, registry)


def test_rows_say_the_same_alone_and_together(engine: Engine) -> None:
    rows = [
        {"text": "good film", "adapters": "a"},
        {"text": "bad", "adapters": "Stack(b, a)", "head": "a", "target": "is bad"},
        {"text": "we", "adapters": "labels"},
        {"text": "the parcel was fine", "adapters": "b", "max_new_tokens": 2},
        {"text": "good film", "adapters": "a", "max_new_tokens": 2, "target": "so"},
    ]
    together = engine.answer(rows)
    assert engine.counts.forwards == 3  # by head: a, b, and all that say nothing
    for row, answer in zip(rows, together, strict=True):
        (alone,) = engine.answer([row])
        assert "error" not in answer, answer
        assert answer.keys() == alone.keys()
        assert answer.get("text") == alone.get("text")
        assert answer.get("log_likelihood") == pytest.approx(alone.get("log_likelihood"), abs=1e-3)
    texts = [answer.get("text") for answer in together]
    assert texts[0] in ("so good", "is bad")
    assert texts[4] == texts[0].split()[0]  # of two pieces the first is [CLS]
    assert "text" not in together[2]
    assert together[1]["pieces"] == 4  # [CLS] is bad [SEP]


def test_what_has_no_text_to_say_is_refused(engine: Engine) -> None:
    for key, value in (("target", "so"), ("max_new_tokens", 3)):
        (answer,) = engine.answer([{"text": "we", "adapters": "labels", key: value}])
        assert f'the task is multilabel, which says no text; leave "{key}" out' in answer["error"]["message"]
    for wrong in (0, True, "3"):
        (answer,) = engine.answer([{"text": "we", "adapters": "a", "max_new_tokens": wrong}])
        assert "it must be a whole number from 1" in answer["error"]["message"]
    parallel = engine.answer([{"text": "we", "adapters": "Parallel(a, b)"}])[0]
    assert [set(branch) for branch in parallel["branches"]] == [{"text", "adapters", "head"}] * 2


def test_a_base_without_a_decoder_of_its_own_is_refused(tmp_path: Path) -> None:
    made = recipe(tmp_path, "spoken")
    small.model_folder(tmp_path / "encoder")
    with pytest.raises(
        AdapterError, match=r"task kind seq2seq_lm needs an encoder-decoder .* this base is a BertModel"
    ):
        train(override(made, {"model.name": str(tmp_path / "encoder")}))
    assert not (tmp_path / "run").exists()


def test_prompts_are_refused_before_anything_is_trained(tmp_path: Path) -> None:
    made = override(recipe(tmp_path, "spoken"), {"adapter.variant": "prompt_tuning[prompt_length=2]"})
    with pytest.raises(AdapterError, match="generate cannot put prompts"):
        train(made)
    assert not (tmp_path / "run").exists()


def test_a_text_to_say_is_cut_as_others_are(tmp_path: Path) -> None:
    folder = small.model_folder(tmp_path / "base")
    encoder = TextEncoder(AutoTokenizer.from_pretrained(folder), 8, "truncate")
    assert encoder.target("so good") == encoder.text("so good")
    assert len(encoder.target("so good and so fine and so great").input_ids) == 8
