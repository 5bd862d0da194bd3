"""The engine: mixed batches equal single rows, the right head answers, what fails fails alone, packages come and go."""

import dataclasses
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from graftwork.build import positions
from graftwork.compose.tree import Fuse, Stack
from graftwork.core.heads import HeadConfig
from graftwork.errors import AdapterError, NotFound, UserError
from graftwork.packing import Provenance
from graftwork.registry.store import Registry
from graftwork.schema.sections import ModelSection
from graftwork.serve.engine import Engine
from tests import tiny
from tests.adapted import shaken
from tests.serve.world import CLASSES, TAGS, World, close, error, furnish, text

COMPOSITIONS: list[dict[str, Any]] = [
    {"adapters": "intent"},
    {"adapters": "intent@1"},
    {"adapters": "intent@stable", "head": "mood"},
    {"adapters": "mood"},
    {"adapters": "Stack(hi, intent)"},
    {"adapters": "Stack(hi, mood)", "head": "probe"},
    {"adapters": "Stack(hi, Fuse(intent@1, mood, name=both))"},
    {"adapters": "both"},
    {"adapters": "headless", "head": "mood"},
    {"adapters": "ner"},
    {"adapters": "value"},
    {"adapters": "Average(intent:0.7, mood:0.3)", "head": "mood"},
    {"adapters": "Average(Stack(hi, intent), both)", "head": "intent@1"},
    {"adapters": "none", "head": "probe"},
    {"adapters": None, "head": "intent"},
    {"adapters": "Parallel(intent, both, ner)"},
    {"adapters": "Stack(hi, Parallel(mood, value))"},
]


def mixed(texts: list[str]) -> list[dict[str, Any]]:
    """Every composition on every text, and pairs and words given one by one."""
    rows = [{"text": one, **how} for one in texts for how in COMPOSITIONS]
    rows += [{"text": texts[0], "text_pair": one, "adapters": "nli"} for one in texts]
    rows += [{"text": texts[0], "text_pair": one, "adapters": "value"} for one in texts]
    return rows + [{"tokens": one.split(), "adapters": "ner"} for one in texts]


def one_at_a_time(engine: Engine, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [engine.answer([row])[0] for row in rows]


def test_mixed_batches_equal_single_rows_on_minilm(minilm_world: World) -> None:
    texts = ["where is my parcel", "bahut accha product hai, thank you so much for the quick delivery!"]
    engine, rows = minilm_world.engine(), mixed(texts)
    single = one_at_a_time(engine, rows)
    assert not [outcome for outcome in single if "error" in outcome]
    before = engine.counts.forwards
    together = engine.answer(rows)
    assert engine.counts.forwards - before < len(rows) / 8
    assert [pair for pair in zip(together, single, strict=True) if not close(*pair)] == []


@pytest.mark.parametrize("family", ["roberta", "llama", "gpt2", "t5"])
def test_mixed_batches_equal_single_rows_on_other_families(family: str, tmp_path: Path) -> None:
    world = furnish(World(tmp_path, family))
    engine, rows = world.engine(max_batch_rows=7), mixed([text(3), text(17)])
    single = one_at_a_time(engine, rows)
    assert not [outcome for outcome in single if "error" in outcome]
    assert all(map(close, engine.answer(rows), single))


ROWS = st.builds(
    lambda words, how: {"text": text(words), **how}, st.sampled_from([0, 3, 9, 20]), st.sampled_from(COMPOSITIONS)
)


@pytest.fixture(scope="module")
def single_answers(tiny_world: World) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The answer to a row alone, from an engine that holds everything; asked once for each row."""
    engine, known = tiny_world.engine(), dict[str, dict[str, Any]]()

    def ask(row: dict[str, Any]) -> dict[str, Any]:
        if str(row) not in known:
            known[str(row)] = engine.answer([row])[0]
        return known[str(row)]

    return ask


@given(rows=st.lists(ROWS, min_size=1, max_size=9), cache=st.integers(1, 12), most=st.integers(1, 9))
@settings(max_examples=settings.default.max_examples // 4)
def test_any_batch_equals_single_rows_whatever_fits(
    tiny_world: World,
    single_answers: Callable[[dict[str, Any]], dict[str, Any]],
    rows: list[dict[str, Any]],
    cache: int,
    most: int,
) -> None:
    engine = tiny_world.engine(adapter_cache_size=cache, max_batch_rows=most, max_batch_tokens=16 * most)
    assert all(map(close, engine.answer(rows), map(single_answers, rows)))
    assert len(engine.pool.loaded()) <= cache


def test_an_answer_is_what_the_model_says_under_that_composition(tiny_world: World) -> None:
    """Against a model built by hand: one package after another, one forward, its own softmax."""
    registry, model = tiny_world.registry, tiny_world.model()
    model.install(registry.get("hi"), "below", with_head=False)
    model.install(registry.get("mood"), "above")
    encoded = tiny_world.tokenizer([text(5)], return_tensors="pt")
    with torch.no_grad():
        wanted = model(**encoded, adapters=Stack("below", "above"), head="above").logits.softmax(-1)[0].tolist()
    (answer,) = tiny_world.engine().answer([{"text": text(5), "adapters": "Stack(hi, mood)"}])
    assert close(list(answer["scores"].values()), wanted, 1e-6)
    assert answer["label"] == CLASSES.labels[wanted.index(max(wanted))]
    assert (answer["adapters"], answer["head"]) == ("Stack(hi@1, mood@1)", "mood@1")


def test_versions_and_aliases_answer_side_by_side(tiny_world: World) -> None:
    named = ["intent", "intent@1", "intent@2", "intent@stable"]
    answers = tiny_world.engine().answer([{"text": text(5), "adapters": name} for name in named])
    assert [answer["adapters"] for answer in answers] == ["intent@2", "intent@1", "intent@2", "intent@1"]
    assert answers[0]["scores"] == pytest.approx(answers[2]["scores"], abs=1e-6)
    assert answers[1]["scores"] != pytest.approx(answers[2]["scores"], abs=1e-3)


def test_each_adapter_and_each_head_shows_in_the_answer(tiny_world: World) -> None:
    asked = [{"text": text(5), **how} for how in COMPOSITIONS if "Parallel" not in str(how["adapters"])]
    answers = tiny_world.engine().answer(asked)
    scores = [tuple(answer["scores"].values()) for answer in answers if "scores" in answer]
    assert len({tuple(round(number, 4) for number in row) for row in scores}) == len(scores)


def test_parallel_gives_one_outcome_per_branch(tiny_world: World) -> None:
    engine = tiny_world.engine()
    row = {"text": text(4), "adapters": "Parallel(intent, Stack(hi, ner), hi)"}
    (answer,) = engine.answer([row])
    assert answer["adapters"] == "Parallel(intent@2, Stack(hi@1, ner@1), hi@1)"
    first, second, third = answer["branches"]
    assert close(first, engine.answer([{**row, "adapters": "intent"}])[0])
    assert close(second, engine.answer([{**row, "adapters": "Stack(hi, ner)"}])[0])
    assert error(third) == ("invalid", 'which head answers hi@1? say "head": the name of a package that has one')
    (answer,) = engine.answer([{**row, "head": "mood"}])
    assert [branch["head"] for branch in answer["branches"]] == ["mood@1"] * 3


def test_a_pruned_fusion_is_served_like_any_other(world: World) -> None:
    members = [world.adapter("one"), world.adapter("two"), world.adapter("three")]
    for member in members:
        world.bench.install(world.registry.get(member), member, with_head=False)
    world.bench.add_adapter_fusion(f"Fuse({', '.join(members)}, name=all)")
    world.bench.add_classification_head("all", num_labels=3)
    shaken(world.bench.parts.fusions, seed=2)
    encoded = world.tokenizer([text(5)], return_tensors="pt")
    world.bench.eval()
    few = world.bench.prune_fusion(world.bench.fusion_attention("all", [dict(encoded)]), 1, name="few")
    world.registry.push(world.bench.package(few, provenance=Provenance(task=CLASSES)), few)
    with torch.no_grad():
        logits = world.bench(**encoded, adapters=Fuse(*members, name="few")).logits
    (answer,) = world.engine().answer([{"text": text(5), "adapters": "few"}])
    assert close(list(answer["scores"].values()), logits.softmax(-1)[0].tolist())


def test_a_split_that_fits_the_text_is_answered_in_a_mixed_batch(tiny_world: World) -> None:
    engine = tiny_world.engine()
    rows = [
        {"text": text(8), "adapters": "intent"},
        {"text": text(3), "adapters": "Split(intent:2, mood:3)", "head": "mood"},
        {"text": text(3), "adapters": "Stack(hi, Split(intent:1, mood:4))", "head": "mood"},
        {"text": text(4), "adapters": "Split(intent:3, mood:3)", "head": "mood"},
    ]
    assert all(map(close, engine.answer(rows), one_at_a_time(engine, rows)))


def test_rows_of_different_compositions_and_heads_share_one_forward(tiny_world: World) -> None:
    engine = tiny_world.engine()
    rows = [{"text": text(4), **how} for how in COMPOSITIONS[:12]]
    assert not [answer for answer in engine.answer(rows) if "error" in answer]
    assert (engine.counts.forwards, engine.counts.compositions, engine.counts.rows["ok"]) == (
        1,
        11,
        12,
    )  # intent@1 twice
    assert engine.counts.pieces == engine.counts.padded == 12 * 6


def test_answers_to_one_text_share_the_layers_below_their_adapters(world: World) -> None:
    for name in ("one", "two", "three"):
        world.adapter(name, CLASSES, "seq_bn[reduction_factor=4,leave_out=[0,1]]")
    engine = world.engine()
    ran: list[list[int]] = [[], [], []]
    for layer, seen in zip(engine.model.base.encoder.layer, ran, strict=True):
        layer.output.register_forward_hook(lambda module, args, output, seen=seen: seen.append(len(output)))
    rows = [{"text": text(6), "adapters": name} for name in ("one", "two", "Parallel(three, two)")]
    rows += [{"text": text(4), "adapters": "three"}, {"text": text(6), "adapters": "none", "head": "one"}]
    found = engine.answer(rows)
    assert ran == [[2], [2], [6]]  # two texts, six answers
    assert (engine.counts.forwards, engine.counts.pieces, engine.counts.padded) == (1, 5 * 8 + 6, 6 * 8)
    assert all(map(close, found, one_at_a_time(engine, rows)))
    assert len({answer["scores"]["no"] for answer in (found[0], found[1], *found[2]["branches"], found[4])}) == 4


def test_a_row_alone_may_be_longer_than_a_batch(tiny_world: World) -> None:
    engine = tiny_world.engine(max_batch_tokens=8)
    rows = [{"text": text(words), "adapters": "mood"} for words in (30, 2, 2, 2)]
    assert all(map(close, engine.answer(rows), one_at_a_time(tiny_world.engine(), rows)))
    assert engine.counts.forwards == 3


def test_more_packages_than_fit_are_answered_in_several_forwards(tiny_world: World) -> None:
    names = ["intent@1", "intent@2", "mood", "ner", "value", "both"]
    rows = [{"text": text(4), "adapters": name} for name in names * 2]
    engine = tiny_world.engine(adapter_cache_size=2)
    assert all(map(close, engine.answer(rows), tiny_world.engine().answer(rows)))
    assert len(engine.pool.loaded()) <= 2
    assert 3 <= engine.counts.forwards <= len(names)
    assert engine.pool.counts.evictions >= 4
    # what one row needs alone may exceed the cache: it is answered, and the pool shrinks again
    tight = tiny_world.engine(adapter_cache_size=1)
    assert "label" in tight.answer([{"text": text(4), "adapters": "Stack(hi, both)"}])[0]
    assert len(tight.pool.loaded()) == 1


def test_a_bad_row_never_fails_its_neighbours(tiny_world: World) -> None:
    engine = tiny_world.engine()
    good = {"text": text(6), "adapters": "Stack(hi, intent)"}
    bad: list[Any] = [
        {"text": text(6), "adapters": "itent"},
        {"text": text(6), "adapters": "Stack(hi, "},
        {"text": text(63), "adapters": "intent"},
        {"text": 3, "adapters": "intent"},
        {"text": text(2), "adapters": "nli"},
        {"text": text(2), "text_pair": text(2), "adapters": "mood"},
        None,
        {"tokens": [], "adapters": "ner"},
        {"text": "\ud800", "adapters": "intent"},
    ]
    answers = engine.answer([good, *(row for one in bad for row in (one, good))])
    assert all(close(answer, answers[0]) for answer in answers[::2])
    assert [error(answer) for answer in answers[1::2]] == [
        ("not_found", "no package 'itent' in the registry; near: intent"),
        ("invalid", "cannot read 'Stack(hi, ' at character 10: expected a name or a block, found the end"),
        ("too_long", "the text has 65 pieces and the limit is 64: shorten it or split it in two"),
        ("invalid", '"text" is 3 (int); it must be a string'),
        ("invalid", 'has no "text_pair" (its fields: "text"); expected {"text", "text_pair", "label"}'),
        ("invalid", 'the task is classification, which reads one text; leave "text_pair" out or take another head'),
        ("invalid", 'a row is an object such as {"text": ..., "adapters": ...}, this is NoneType'),
        ("invalid", '"tokens" is [] (list); it must be a list of at least one string'),
        ("invalid", "\"text\" holds half a surrogate pair, '\\ud800', which is not a character; take it out"),
    ]
    assert engine.counts.rows == {"ok": 10, "invalid": 7, "not_found": 1, "too_long": 1}


def test_an_unknown_adapter_is_never_answered_by_the_base(tiny_world: World) -> None:
    outcomes = tiny_world.engine().answer(
        [
            {"text": text(3), "adapters": name, "head": "mood"}
            for name in ("gone", "intent@9", "intent@prod", "Stack(hi, gone)")
        ]
    )
    assert [error(outcome)[0] for outcome in outcomes] == ["not_found"] * 4
    assert error(outcomes[1])[1] == "'intent' has no version 9; it has 1, 2"
    assert error(outcomes[2])[1] == "'intent' has no alias 'prod'; it has stable; versions: 1, 2"


def test_a_damaged_package_fails_only_the_rows_that_need_it(world: World) -> None:
    world.adapter("whole")
    world.adapter("torn")
    weights = world.registry.resolve("torn").path / "graft.safetensors"
    data = bytearray(weights.read_bytes())
    data[-3] ^= 1
    weights.write_bytes(bytes(data))
    world.adapter("scribbled")
    (world.registry.resolve("scribbled").path / "graft.json").write_text("{")
    engine = world.engine()
    rows = [{"text": text(3), "adapters": name} for name in ("whole", "torn", "scribbled", "Stack(torn, whole)")]
    first, second, third, fourth = engine.answer(rows)
    assert first["head"] == "whole@1"
    code, message = error(second)
    assert code == "damaged"
    assert message.startswith("torn/1/graft.safetensors: tensor ")
    assert "sha256 is" in message
    code, message = error(third)
    assert code == "damaged"
    assert message.startswith("scribbled/1/graft.json: not valid JSON")
    assert error(fourth) == error(second)
    assert str(world.registry.root) not in str((second, third, fourth))
    assert engine.pool.loaded() == ("whole@1",)
    assert set(engine.model.parts.adapter_configs) == set(engine.model.parts.head_configs) == {"whole@1"}
    assert engine.pool.counts.failures == 1


def test_a_package_for_another_base_or_tokenizer_is_a_conflict(world: World, tmp_path: Path) -> None:
    world.adapter("ours")
    other = World(tmp_path / "other")
    other.model = lambda: type(world.model())(tiny.model("bert", seed=9))  # type: ignore[method-assign]
    world.registry.push(other.made("theirs"), "theirs")
    strange = world.made("strange")
    manifest = strange.manifest.model_copy(update={"vocabulary": "ab" * 32})
    world.registry.push(dataclasses.replace(strange, manifest=manifest), "strange")
    rows = [{"text": text(3), "adapters": name} for name in ("ours", "theirs", "strange", "Stack(strange, ours)")]
    ours, theirs, strange_one, stacked = world.engine().answer(rows)
    assert ours["head"] == "ours@1"
    code, message = error(theirs)
    assert code == "conflict"
    assert "trained on another base" in message
    code, message = error(strange_one)
    assert code == "conflict"
    assert message.startswith(
        "package strange@1 was trained with another tokenizer: its vocabulary is abababababab, the "
    )
    assert error(stacked)[0] == "conflict"


def test_weights_that_overflow_fail_their_own_row_only(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.adapter("calm")
    wild = world.made("wild")
    tensors = {
        key: torch.full_like(tensor, 3e38) if key.startswith("head/") else tensor
        for key, tensor in wild.tensors.items()
    }
    world.registry.push(dataclasses.replace(wild, tensors=tensors), "wild")
    calm, overflow = world.engine().answer([{"text": text(3), "adapters": name} for name in ("calm", "wild")])
    assert calm["head"] == "calm@1"
    code, message = error(overflow)
    assert code == "internal"
    assert message.startswith("the model answers with numbers that are not finite")
    assert message.rpartition(" ")[2] in caplog.text


def test_a_forward_that_fails_is_repeated_row_by_row(tiny_world: World, caplog: pytest.LogCaptureFixture) -> None:
    engine = tiny_world.engine()
    poison = tiny_world.tokenizer.convert_tokens_to_ids("w13")

    def refuse(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if (kwargs["input_ids"] == poison).any():
            raise RuntimeError("secret: a row that breaks the model")

    engine.model.base.register_forward_pre_hook(refuse, with_kwargs=True)
    rows = [
        {"text": "w1 w2", "adapters": "mood"},
        {"text": "w13", "adapters": "mood"},
        {"text": "w3", "adapters": "intent"},
    ]
    first, second, third = engine.answer(rows)
    assert ("label" in first, "label" in third) == (True, True)
    code, message = error(second)
    assert code == "internal"
    assert message.startswith("this row could not be answered; the log has it as ")
    assert message.rpartition(" ")[2] in caplog.text
    assert "secret: a row that breaks the model" in caplog.text


def test_a_head_that_does_not_fit_its_task_is_damaged_and_one_without_a_task_a_conflict(world: World) -> None:
    package = world.made("odd")
    for name, task in {"odd": TAGS, "silent": None}.items():
        manifest = package.manifest.model_copy(update={"task": task})
        world.registry.push(dataclasses.replace(package, manifest=manifest), name)
    odd, silent = world.engine().answer([{"text": text(3), "adapters": name} for name in ("odd", "silent")])
    assert error(odd) == ("damaged", "package odd@1: its task is tagging with 3 outputs, its head another")
    code, message = error(silent)
    assert code == "conflict"
    assert message == "package 'silent' (role task) does not say what task it was trained for"


def test_a_new_version_and_a_moved_alias_count_from_the_next_call(world: World) -> None:
    world.adapter("mood")
    engine, row = world.engine(), {"text": text(3), "adapters": "mood"}
    assert engine.answer([row])[0]["adapters"] == "mood@1"
    world.adapter("mood")
    assert engine.answer([row])[0]["adapters"] == "mood@2"
    aliased = {**row, "adapters": "mood@prod"}
    world.registry.alias("mood", "prod", 1)
    assert engine.answer([aliased])[0]["adapters"] == "mood@1"
    world.registry.alias("mood", "prod", 2)
    assert engine.answer([aliased])[0]["adapters"] == "mood@2"


def test_a_version_that_was_replaced_on_disk_is_never_answered_by_the_old_one(world: World) -> None:
    world.adapter("mood")
    engine, row = world.engine(), {"text": text(3), "adapters": "mood"}
    before = engine.answer([row])[0]
    shutil.rmtree(world.registry.resolve("mood").path)
    world.registry.push(world.made("mood"), "mood", 1)
    after = engine.answer([row])[0]
    assert after["adapters"] == before["adapters"] == "mood@1"
    assert close(after, world.engine().answer([row])[0])
    assert not close(after, before)


def test_threads_get_the_answers_they_would_get_alone(tiny_world: World) -> None:
    engine = tiny_world.engine(adapter_cache_size=3)
    rows = [{"text": text(words), **how} for words in (2, 9) for how in COMPOSITIONS]
    wanted = one_at_a_time(tiny_world.engine(), rows)
    shifted = [rows[start:] + rows[:start] for start in range(0, len(rows), 5)]
    with ThreadPoolExecutor(6) as threads:
        found = list(threads.map(engine.answer, shifted))
    for start, answers in zip(range(0, len(rows), 5), found, strict=True):
        assert all(map(close, answers, wanted[start:] + wanted[:start]))
    assert len(engine.pool.loaded()) <= 3


def test_a_package_is_read_while_a_forward_runs(world: World) -> None:
    """While a forward is held up, rows are planned and packages are read: only running waits for its turn."""
    world.adapter("mood")
    world.adapter("torn")
    (world.registry.resolve("torn").path / "graft.safetensors").write_bytes(b"")
    engine = world.engine()
    inside, go_on = threading.Event(), threading.Event()

    def hold_up(*_: Any) -> None:
        inside.set()
        assert go_on.wait(30)

    handle = engine.model.base.register_forward_pre_hook(hold_up)
    with ThreadPoolExecutor(2) as threads:
        slow = threads.submit(engine.answer, [{"text": text(3), "adapters": "mood"}])
        assert inside.wait(30)
        handle.remove()
        waiting = threads.submit(engine.answer, [{"text": text(3), "adapters": "torn"}])
        assert error(waiting.result(30)[0])[0] == "damaged"
        assert not slow.done()
        go_on.set()
        assert "label" in slow.result(30)[0]


def test_the_base_is_not_changed_by_serving(tiny_world: World) -> None:
    engine = tiny_world.engine(adapter_cache_size=2)
    before = {key: value.clone() for key, value in engine.model.base.state_dict().items()}
    engine.answer([{"text": text(4), **how} for how in COMPOSITIONS])
    after = engine.model.base.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_an_engine_opens_a_model_by_name(minilm_world: World) -> None:
    engine = Engine.open(ModelSection(name="minilm"), minilm_world.registry, adapter_cache_size=5)
    assert engine.pool.capacity == 5
    assert engine.answer([{"text": "late again", "adapters": "mood"}])[0]["head"] == "mood@1"


def test_sizes_below_one_are_refused(tiny_world: World) -> None:
    with pytest.raises(UserError, match="adapter_cache_size is 0; it must be at least 1"):
        tiny_world.engine(adapter_cache_size=0)
    with pytest.raises(UserError, match="max_batch_tokens is -1; it must be at least 1"):
        tiny_world.engine(max_batch_tokens=-1)


def test_no_rows_no_answers_and_an_empty_registry_says_so(tmp_path: Path, tiny_world: World) -> None:
    empty = Engine(tiny_world.model(), tiny_world.tokenizer, Registry(tmp_path / "nothing"))
    assert empty.answer([]) == []
    assert error(empty.answer([{"text": "w1", "adapters": "mood"}])[0]) == (
        "not_found",
        "no package 'mood' in the registry; it is empty",
    )


def test_a_text_longer_than_the_model_has_positions_for_is_too_long(tmp_path: Path) -> None:
    world = World(tmp_path, "roberta")
    assert positions(world.model().config) == 62
    assert positions(tiny.model("t5").config) is None
    world.adapter("mood", CLASSES.model_copy(update={"max_length": 300}))
    fits, too_long = world.engine().answer([{"text": text(words), "adapters": "mood"} for words in (60, 61)])
    assert "label" in fits
    assert error(too_long) == ("too_long", "the text has 63 pieces and the limit is 62: shorten it or split it in two")


def test_an_engine_can_be_told_to_cut_what_is_too_long(tiny_world: World) -> None:
    cutting = Engine(tiny_world.model(), tiny_world.tokenizer, tiny_world.registry, too_long="truncate")
    words = text(90).split()
    cut, whole = cutting.answer([{"text": " ".join(some), "adapters": "mood"} for some in (words, words[:62])])
    assert "label" in cut
    assert close(cut, whole)


def test_the_task_of_a_composition_is_that_of_its_head(tiny_world: World) -> None:
    engine = tiny_world.engine()
    assert engine.task("Stack(hi, ner)").spec == TAGS
    assert engine.task("none", "intent").spec == CLASSES
    with pytest.raises(AdapterError, match=r"which head answers hi@1\?"):
        engine.task("hi")
    with pytest.raises(NotFound, match="no package 'gone'"):
        engine.task("gone")


def test_a_model_with_heads_of_its_own_keeps_them_out_of_the_answers(tiny_world: World) -> None:
    model = tiny_world.model()
    model.add_head("mood", HeadConfig(kind="classification", num_outputs=2))
    engine = Engine(model, tiny_world.tokenizer, tiny_world.registry)
    assert engine.answer([{"text": text(3), "adapters": "mood"}])[0]["head"] == "mood@1"


def test_rows_that_differ_run_in_slots_which_evicted_packages_give_back(tiny_world: World) -> None:
    engine = tiny_world.engine(adapter_cache_size=2)
    assert engine.model.execution == "auto"
    banks = engine.model._planner.executors.banks
    for names in (["intent", "mood"], ["value", "intent"], ["mood", "value"], ["intent", "mood"]):
        outcomes = engine.answer([{"text": text(4), "adapters": name} for name in names])
        assert not [outcome for outcome in outcomes if "error" in outcome]
        held = {name.partition("@")[0] for name in engine.pool.loaded()}
        assert held == set(names)
        assert sum(bank.used for bank in banks.banks) == 2
        assert all(bank.slots == 9 for bank in banks.banks)  # none of them had to grow
