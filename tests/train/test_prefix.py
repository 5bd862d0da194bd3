"""Training behind frozen first layers is training, up to rounding; they run once, and what cannot be kept is said."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from graftwork import recipe as recipes
from graftwork.compose.grammar import as_composition
from graftwork.errors import RecipeError
from graftwork.model import AdapterModel
from graftwork.packing import Provenance
from graftwork.registry.package import Package
from graftwork.registry.store import Registry
from graftwork.tasks.kinds import task_class
from graftwork.tasks.text import TextEncoder
from graftwork.train.batches import EncodedRows
from graftwork.train.outcome import TrainResult
from graftwork.train.prefix import Prefix, plan, untrained
from graftwork.train.run import train
from tests import tiny, zoo
from tests.adapted import shaken
from tests.train import small
from tests.train.test_kinds import KINDS, Draw
from tests.train.test_kinds import recipe as recipe_of

ABOVE = "seq_bn[reduction_factor=4,leave_out=[0,1]]"
RESTING: dict[str, Any] = {"training.base_dropout": False, "adapter.variant": ABOVE}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of states for each test."""
    monkeypatch.setenv("GRAFTWORK_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "cache" / "prefix"


def ran(made: recipes.Recipe, cache: str, changes: dict[str, Any], registry: Registry | None = None) -> TrainResult:
    output = Path(made.output).with_name(f"run-{cache}-{len(list(Path(made.output).parent.glob('run-*')))}")
    changes = {**changes, "training.prefix_cache": cache, "output": str(output)}
    return train(recipes.override(made, changes), registry=registry)


def check_close(one: TrainResult, other: TrainResult) -> None:
    """The same weights, up to the rounding of other batches."""
    for key, tensor in one.package.tensors.items():
        torch.testing.assert_close(other.package.tensors[key], tensor, rtol=1e-3, atol=1e-5)
    assert one.steps == other.steps
    losses = [[point["loss"] for point in run.history if "loss" in point] for run in (one, other)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.fixture
def frozen(tmp_path: Path) -> Registry:
    """Adapters with dropout in every layer and, `top`, in the last one."""
    registry = Registry(tmp_path / "registry")
    made = small.recipe(tmp_path)
    model = AdapterModel(tiny.BertModel.from_pretrained(made.model.name))
    for name, config in (("low", "seq_bn[reduction_factor=4,dropout=0.4]"), ("top", ABOVE), ("other", ABOVE)):
        model.add_adapter(name, config)
        shaken(model.parts.adapters[f"={name}"], seed=len(name))
        package: Package = model.package(name, provenance=Provenance())
        registry.push(package, name)
    return registry


SETUPS: dict[str, dict[str, Any]] = {
    "an adapter": RESTING,
    "only the head": {"training.method": "head", "training.base_dropout": False},
    "a stack": {**RESTING, "adapter.composition": "stack", "adapter.language_adapter": "low"},
    "a fusion": {
        "training.base_dropout": False,
        "adapter": {"composition": "fuse", "members": ["top", "other"]},
    },
    "mixed precision": {**RESTING, "training.bf16": True},
}


@pytest.mark.parametrize("setup", SETUPS)
def test_training_is_the_same_with_and_without(tmp_path: Path, frozen: Registry, home: Path, setup: str) -> None:
    made = small.recipe(tmp_path)
    plain = ran(made, "off", SETUPS[setup], frozen)
    assert not home.exists()
    kept = ran(made, "2GB", SETUPS[setup], frozen)
    assert len([path for path in home.iterdir() if path.is_dir()]) == 1
    layers = 3 if setup == "only the head" else 2
    assert any(note.startswith(f"the first {layers} of 3 layers are frozen") for note in kept.notes)
    if setup == "mixed precision":
        assert plain.steps == kept.steps
        for key, tensor in plain.package.tensors.items():
            torch.testing.assert_close(kept.package.tensors[key], tensor, rtol=0.1, atol=0.02)
    else:
        check_close(plain, kept)


@pytest.mark.parametrize("name", ["choice", "parsing", "causal"])
def test_every_kind_of_row(tmp_path: Path, name: str) -> None:
    _, make, _, _ = KINDS[name]
    made = recipe_of(tmp_path, name)
    for split in ("train", "dev", "test"):
        draw = Draw(split)
        small.write(tmp_path / f"{split}.jsonl", [make(draw) for _ in range(12)])
    made = recipes.override(made, {"training.epochs": 2, "training.learning_rate": 1e-3, "training.logging_steps": 1})
    check_close(ran(made, "off", RESTING), ran(made, "1GB", RESTING))


def test_where_padding_is_the_same_every_bit_is(tmp_path: Path) -> None:
    rows = [{"text": f"{word} film was so", "label": "ab"[place % 2]} for place, word in enumerate([*small.GOOD] * 8)]
    for split in ("train", "dev", "test"):
        small.write(tmp_path / f"{split}.jsonl", rows)
    made = small.recipe(tmp_path)
    plain, kept = ran(made, "off", RESTING), ran(made, "auto", RESTING)
    assert all(torch.equal(tensor, kept.package.tensors[key]) for key, tensor in plain.package.tensors.items())
    assert plain.history == kept.history


@contextmanager
def counted(layer: int) -> Iterator[list[int]]:
    """Rows that went through the attention of a layer of the tiny BERT, call by call."""
    seen: list[int] = []

    def look(module: nn.Module, args: Any, output: Any) -> None:
        if type(module).__name__ == "BertSelfAttention" and module.layer_idx == layer:
            seen.append(len(output[0]))

    handle = torch.nn.modules.module.register_module_forward_hook(look)
    try:
        yield seen
    finally:
        handle.remove()


def test_the_first_layers_run_once(tmp_path: Path, home: Path) -> None:
    made = small.recipe(tmp_path)
    count: dict[tuple[int, int], int] = {}
    for epochs in (1, 4):
        with counted(1) as below, counted(2) as above:
            ran(made, "auto", {**RESTING, "training.epochs": epochs})
        count[epochs, 1], count[epochs, 2] = sum(below), sum(above)
    rows = 40 + 12  # of train and dev
    assert count[4, 2] - count[1, 2] == 3 * rows  # each epoch trains and scores
    assert count[1, 1] - count[4, 1] == rows  # the second run found what the first one kept, and no epoch adds to it
    assert len([path for path in home.iterdir() if path.is_dir()]) == 1


# -- on a model, without a run --


def rows_for(count: int = 10) -> EncodedRows:
    encoder = TextEncoder(small.tokenizer(), 24, "truncate")
    task = task_class("classification")(labels=("bad", "good"))
    return EncodedRows(task.encode(small.texts(count), encoder, with_labels=True), encoder)


def prepared(family: str, method: str = "seq_bn[leave_out=[0]]") -> AdapterModel:
    model = AdapterModel(zoo.model(family))
    model.add_classification_head("a", num_labels=2)
    model.add_adapter("a", method)
    shaken(model.parts, seed=2)
    model.train_adapter("a")
    return model


def logits(model: AdapterModel, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(**batch).logits
    return found


@pytest.mark.parametrize("family", ["llama", "gpt2", "modernbert", "deberta-v2", "bart", "qwen3_moe", "gpt_neox"])
def test_families(family: str) -> None:
    model, rows = prepared(family), rows_for()
    made, note = plan(model, [rows], "auto", None)
    assert isinstance(made, Prefix), note
    assert model.training
    model.eval()
    wanted = [logits(model, rows.__getitems__(chosen)) for chosen in ([3, 1], [0, 5, 9])]
    with made.kept(4) as shortcut:
        for chosen, whole in zip(([3, 1], [0, 5, 9]), wanted, strict=True):
            batch = rows.__getitems__(chosen)
            with shortcut.entered(batch.pop("entering")):
                torch.testing.assert_close(logits(model, batch), whole, rtol=1e-3, atol=1e-4)
    assert "entering" not in rows[0]


def stacked(seed: int = 2, top: str = "seq_bn[leave_out=[0]]") -> AdapterModel:
    """A trained adapter on a frozen one, which a seed makes."""
    model = prepared("bert", top)
    torch.manual_seed(seed)
    model.add_adapter("low", "seq_bn")
    shaken(model.parts.adapters["=low"], seed)
    model.train_adapter("a")
    model.set_active_adapters(as_composition("Stack(low, a)"))
    return model


def test_an_entry_serves_what_stands_on_the_same(home: Path) -> None:
    def entries(model: AdapterModel, rows: EncodedRows) -> int:
        made, note = plan(model, [rows], "auto", None)
        assert made is not None, note
        with made.kept(8):
            return sum(path.is_dir() for path in home.iterdir())

    rows = rows_for()
    assert entries(prepared("bert"), rows) == 1
    shaken((other := prepared("bert", "lora[r=2,leave_out=[0]]")).parts, seed=9)
    assert entries(other, rows) == 1  # what trains is not below
    assert entries(prepared("bert", "seq_bn[leave_out=[0,1]]"), rows) == 2
    assert entries(prepared("bert"), rows_for(11)) == 3
    assert entries(stacked(), rows) == 4
    assert entries(stacked(top="lora[leave_out=[0]]"), rows) == 4
    assert entries(stacked(seed=3), rows) == 5
    half = prepared("bert")
    half.to(torch.bfloat16)
    assert entries(half, rows) == 6
    with torch.no_grad():
        (changed := prepared("bert")).base.embeddings.word_embeddings.weight[5] += 1
    assert entries(changed, rows) == 7


REFUSED: dict[str, tuple[str, str, str]] = {
    "relative positions": ("t5", "seq_bn[leave_out=[0]]", "later layers of this base take more from the first ones"),
    "from the first layer on": ("bert", "seq_bn", "something trains in the first layer or before it"),
    "at the embeddings": ("bert", "seq_bn_inv[leave_out=[0,1]]", "something trains in the first layer or before it"),
    "towers": ("clip", "seq_bn[leave_out=[0]]", "the base has several towers"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_kept_is_said(case: str, home: Path) -> None:
    family, method, why = REFUSED[case]
    model, rows = prepared(family, method), rows_for()
    made, note = plan(model, [rows], "auto", None)
    assert made is None
    assert note.startswith("training.prefix_cache: nothing is kept: ")
    assert why in note
    with pytest.raises(RecipeError, match=r"training\.prefix_cache: 2GB: .*; set it to off"):
        plan(model, [rows], "2GB", None)
    assert not home.exists()


def test_states_that_find_no_room_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    _, note = plan(prepared("bert"), [rows_for()], "auto", None)
    assert "the states of all rows are 0.00 GB, and there is room for 0.00 GB" in note


def test_how_many_layers_are_below_all_that_trains() -> None:
    model = AdapterModel(zoo.model("bart"))
    model.add_classification_head("a", num_labels=2)
    for name, config in (("all", "seq_bn"), ("a", "lora[leave_out=[0]]"), ("late", "seq_bn[leave_out=[0,1,2]]")):
        model.add_adapter(name, config)
    expected = {"all": 0, "a": 1, "late": 2, "Stack(all, late)": 0, "Stack(a, late)": 1}
    for setup, count in expected.items():
        model.train_adapter(as_composition(setup))
        assert untrained(model) == count, setup  # two layers of the encoder; those of the decoder run in any case
    model.parts.train_only([("heads", "a")])
    assert untrained(model) == 2
    model.base.requires_grad_(True)
    assert untrained(model) == 0
