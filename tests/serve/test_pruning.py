"""A fusion of a registry pruned over a file of rows, in Python and by the command."""

import json
from pathlib import Path

import pytest
import torch

from graftwork.cli.main import run
from graftwork.compose.tree import Fuse
from graftwork.errors import AdapterError, DataError, NotFound, UserError
from graftwork.packing import Provenance
from graftwork.registry.package import read
from graftwork.serve import pruning
from graftwork.workflow import attention, prune
from tests.adapted import shaken
from tests.serve.world import CLASSES, World, close, text


@pytest.fixture
def fused(world: World, tmp_path: Path) -> World:
    """A fusion `mix` of three, with a head, and rows.jsonl beside the registry."""
    members = [world.adapter(name) for name in ("one", "two", "three")]
    for member in members:
        world.bench.install(world.registry.get(member), member, with_head=False)
    world.bench.add_adapter_fusion(f"Fuse({', '.join(members)}, name=mix)")
    world.bench.add_classification_head("mix", num_labels=3)
    shaken(world.bench.parts.fusions, seed=2)
    told = Provenance(task=CLASSES, vocabulary=world.made("one").manifest.vocabulary, training={
        "epochs": 3, "drop": [0, 1], "dev_accuracy_by_layers_dropped": {"0": 0.9}})  # fmt: skip
    world.registry.push(world.bench.package("mix", provenance=told), "mix")
    rows = [{"text": text(words), "label": "yes"} for words in (3, 9, 5)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return world


def test_it_keeps_what_the_model_attends_to_and_is_served(fused: World, tmp_path: Path) -> None:
    engine = fused.engine(max_batch_rows=2)
    before = engine.answer([{"text": text(4), "adapters": "mix"}])
    reference, made = prune(engine, "mix", str(tmp_path / "rows.jsonl"), 1)
    assert reference == "mix-1@1"
    assert made.attention.tokens == 3 + 9 + 5 + 3 * 2
    manifest = read(fused.registry.resolve(reference).path).manifest
    assert manifest.fusion is not None
    assert manifest.fusion.kept == made.kept == made.attention.most(1)
    assert manifest.training["epochs"] == 3
    assert manifest.training.keys() == {"epochs", "pruned"}, "scores by layers dropped are those of the whole one"
    assert manifest.composition == "Fuse(one@1, two@1, three@1, name=mix-1)"
    assert manifest.training["pruned"] == {
        "from": "mix@1", "digest": fused.registry.get("mix").digest, "keep": 1, "tokens": 23,
    }  # fmt: skip
    assert (manifest.task, manifest.scores) == (CLASSES, {})
    (answer,) = engine.answer([{"text": text(4), "adapters": reference}])
    assert engine.answer([{"text": text(4), "adapters": "mix"}]) == before
    assert set(engine.model.parts.fusion_records) == {"mix@1", "mix-1@1"}
    fused.bench.install(fused.registry.get(reference), "few")
    fused.bench.eval()
    tree = Fuse(*fused.bench.parts.fusion_records["few"].tree.children, name="few")
    with torch.no_grad():
        logits = fused.bench(**fused.tokenizer([text(4)], return_tensors="pt"), adapters=tree, head="few").logits
    assert close(list(answer["scores"].values()), logits.softmax(-1)[0].tolist())


def test_the_command_prints_and_stores_it(fused: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fused.model().base.save_pretrained(tmp_path / "base")
    fused.tokenizer.save_pretrained(tmp_path / "base")
    words = ["prune", "mix@1", "--data", str(tmp_path / "rows.jsonl"), "--model", str(tmp_path / "base")]
    words += ["--registry", str(fused.registry.root)]
    capsys.readouterr()
    assert run([*words, "--keep", "1", "--name", "few", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["reference"], said["tokens"]) == ("few@1", 23)
    assert {len(row["kept"]) for row in said["sites"]} == {1}
    assert run(words) == 0
    out = capsys.readouterr().out
    assert "mix-2@1: mean attention over 23 tokens" in out
    assert "one@1" in out


def test_the_command_tells_what_is_attended_to_by_layer_and_label(
    fused: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fused.model().base.save_pretrained(tmp_path / "base")
    fused.tokenizer.save_pretrained(tmp_path / "base")
    file, picture = tmp_path / "rows.jsonl", tmp_path / "attention.png"
    rows = [{"text": text(words), "label": label} for words, label in ((3, CLASSES.labels[1]), (9, CLASSES.labels[0]))]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["attention", "mix@1", str(file), "--model", str(tmp_path / "base"), "--registry", str(fused.registry.root)]
    capsys.readouterr()
    assert run([*words, "--json", "--picture", str(picture)]) == 0
    said = json.loads(capsys.readouterr().out)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert (said["members"], said["tokens"]) == (["one@1", "two@1", "three@1"], 3 + 9 + 2 * 2)
    engine = fused.engine(max_batch_rows=1)
    for row in rows:
        file.write_text(json.dumps(row) + "\n")
        alone = attention(engine, "mix", str(file))
        assert list(alone["labels"]) == [row["label"]]
        for site, shares in alone["sites"].items():
            assert said["labels"][row["label"]][site] == pytest.approx(shares, abs=1e-6)
            assert sum(shares) == pytest.approx(1)
    assert run(words) == 0
    out = capsys.readouterr().out
    assert "mean over layers, by label" in out
    assert f"mean over {9 + 2} tokens of {file}" in out
    assert run([*words[:2], str(tmp_path / "rows.jsonl"), *words[3:], "--picture", str(tmp_path / "no" / "x.png")]) == 2
    assert "the picture cannot be written: No such file" in capsys.readouterr().err
    with pytest.raises(UserError, match="one@1 is not a fusion"):
        attention(engine, "one", str(file))
    file.write_text('{"text": "x", "label": "else"}\n')
    with pytest.raises(DataError, match='row 1: "label" is "else"'):
        attention(engine, "mix", str(file))


def test_a_fusion_that_says_texts_is_not_measured_by_rows_alone(fused: World) -> None:
    told = Provenance(task={"kind": "seq2seq_lm", "max_length": 16}, vocabulary=fused.made("one").manifest.vocabulary)
    fused.registry.push(fused.bench.package("mix", provenance=told), "says")
    rows = [{"text": "x", "target": "y"}]
    for measure in (pruning.attention, lambda *given: pruning.prune(*given, keep=1)):
        with pytest.raises(UserError, match="says@1 is for task kind seq2seq_lm, which says texts piece by piece"):
            measure(fused.engine(), "says", rows)


def test_what_cannot_be_pruned_is_refused(fused: World, tmp_path: Path) -> None:
    engine, rows = fused.engine(), str(tmp_path / "rows.jsonl")
    with pytest.raises(UserError, match="one@1 is not a fusion, it is a task package"):
        prune(engine, "one", rows)
    with pytest.raises(NotFound, match="nothing"):
        prune(engine, "nothing", rows)
    with pytest.raises(AdapterError, match="keep is 4; fusion 'mix@1' has 3 members"):
        prune(engine, "mix", rows, 4)
    with pytest.raises(UserError, match="no such file"):
        prune(engine, "mix", str(tmp_path / "none.jsonl"))
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError):
        prune(engine, "mix", str(tmp_path / "empty.jsonl"))
    assert [entry.name for entry in fused.registry.list() if entry.role == "fusion"] == ["mix"]
