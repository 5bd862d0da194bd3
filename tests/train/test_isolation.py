"""Training one thing leaves everything else as it is, to the last bit: the base, and what other adapters, fusions and
heads answer. Whatever was trained before, in whatever order, alone or together."""

import gc
import hashlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import TrainingArguments

from graftwork.compose.tree import Average, Composition, Fuse, Stack
from graftwork.model import AdapterModel
from graftwork.train import together
from graftwork.train.batches import EncodedRows, as_it_is
from graftwork.train.drop import Drop, plan_drop
from graftwork.train.outcome import TrainResult
from graftwork.train.trainer import AdapterTrainer
from tests import tiny
from tests.train import small
from tests.train.test_trainer import encoded, encoder

METHODS = (
    "seq_bn[reduction_factor=4]",
    "seq_bn[reduction_factor=4,shared=true]",
    "adapter_bert[bottleneck_size=8]",  # its own norms, of the embeddings too
    "par_bn[reduction_factor=4]",
    "seq_bn_inv[reduction_factor=4]",
    "compacter[reduction_factor=4]",
    "lora[r=2]",
    "dora[r=2]",
    "vera[r=4]",
    "ia3",
    "prompt_tuning[prompt_length=2]",
    "prefix_tuning[prefix_length=2]",
    "loreft[r=2]",
    "lora[r=2]|seq_bn[reduction_factor=8]",
)
MIXABLE = (METHODS[0], METHODS[1], METHODS[2], METHODS[3], METHODS[5])  # at the same sites, and summed there
WAYS = ("alone", "on top of the last", "fused with the last", "averaged with the last")
ROWS = EncodedRows(encoded(), encoder())
ASKED = tiny.inputs("bert", rows=3)


@pytest.fixture(scope="module", autouse=True)
def few_objects_to_collect() -> Iterator[None]:
    """Every training ends with a garbage collection; of what was there before, none is to be found."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@dataclass
class World:
    """A model, what has been trained on it, and what that answered when it had been."""

    model: AdapterModel
    base: str
    answers: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    trees: dict[str, Composition] = field(default_factory=dict)
    methods: dict[str, str] = field(default_factory=dict)

    @staticmethod
    def new() -> "World":
        model = AdapterModel(tiny.model("bert"))
        return World(model, digest(model))

    def answer(self, name: str, execution: str) -> Tensor:
        """Logits of a head under the composition that it was trained in, (B, L)."""
        self.model.eval()
        self.model.execution = execution
        with torch.no_grad():
            found: Tensor = self.model(**ASKED, adapters=self.trees[name], head=name).logits
        return found

    def learned(self, name: str, tree: Composition) -> None:
        self.trees[name] = tree
        for execution in ("reference", "auto"):
            self.answers[name, execution] = self.answer(name, execution)

    def check(self) -> None:
        """Everything that was trained before answers as it did, and the base is what it was."""
        assert digest(self.model) == self.base
        for (name, execution), expected in self.answers.items():
            assert torch.equal(self.answer(name, execution), expected), (name, execution)


def digest(model: AdapterModel) -> str:
    """Of every parameter and buffer of the base."""
    made = hashlib.sha256()
    for name, tensor in sorted(model.base.state_dict().items()):
        made.update(name.encode() + tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return made.hexdigest()


def train(model: AdapterModel, drop: Drop | None = None) -> None:
    """Three steps of AdamW with a large rate and decay, by the Trainer."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = AdapterTrainer(
            model=model,
            args=TrainingArguments(
                output_dir=folder, max_steps=3, per_device_train_batch_size=4, learning_rate=0.05, weight_decay=0.1,
                save_strategy="no", report_to="none", disable_tqdm=True, dataloader_pin_memory=False,
                remove_unused_columns=False, logging_strategy="no",
            ),
            train_dataset=ROWS,
            data_collator=as_it_is,
        )  # fmt: skip
        trainer.drop = drop
        trainer.train()


def grow(world: World, method: str, way: str, drop: bool) -> None:
    """Add and train one more thing: beside, on top of, or mixed with the adapter that was added last."""
    model, name = world.model, f"t{len(world.trees)}"
    last = next(reversed(model.parts.adapter_configs), None)
    mixes = last is not None and method in MIXABLE and world.methods[last] in MIXABLE
    fuses = way == "fused with the last" and mixes
    new = f"{name}-member" if fuses else name
    model.add_adapter(new, method)
    world.methods[new] = method
    model.add_classification_head(name, num_labels=2)
    tree: Composition = name
    if fuses:
        tree = Fuse(str(last), new, name=name)
        model.add_adapter_fusion(tree)
        model.train_adapter_fusion(tree)
    else:
        model.train_adapter(name)
        if way == "on top of the last" and last is not None:
            tree = Stack(last, name)
        elif way == "averaged with the last" and mixes:
            tree = Average(str(last), name)
        model.set_active_adapters(tree)
        model.active_head = name
    before = {key: value.clone() for key, value in model.state_dict().items()}
    dropped = plan_drop(model, "random", 0) if drop and method in MIXABLE else None
    train(model, dropped)
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert {key.split(".")[1] for key in moved} == {"fusions" if fuses else "adapters", "heads"}
    assert all(key.split(".")[2] == f"={name}" for key in moved), moved
    world.learned(name, tree)


@settings(max_examples=settings.default.max_examples // 10)
@given(plan=st.lists(st.tuples(st.sampled_from(METHODS), st.sampled_from(WAYS), st.booleans()), min_size=2, max_size=4))
def test_what_was_trained_before_answers_as_it_did(plan: list[tuple[str, str, bool]]) -> None:
    world = World.new()
    for method, way, drop in plan:
        grow(world, method, way, drop)
        world.check()


def test_the_order_makes_no_difference_to_what_is_alone() -> None:
    packages: dict[str, list[str]] = {}
    for order in (METHODS[:3], METHODS[2::-1]):
        model = AdapterModel(tiny.model("bert"))
        for method in order:
            torch.manual_seed(7)
            model.add_adapter(method.partition("[")[0] + str(len(method)), method)
        for name in model.parts.adapter_configs:
            torch.manual_seed(8)
            model.add_classification_head(name, num_labels=2)
            model.train_adapter(name)
            train(model)
            packages.setdefault(name, []).append(model.package(name).digest)
    assert len(packages) == 3
    assert all(one == other for one, other in packages.values())


def test_recipes_that_train_together_leave_what_is_on_their_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World.new()
    for method in ("adapter_bert[bottleneck_size=8]", "lora[r=2]", "prompt_tuning[prompt_length=2]"):
        grow(world, method, "alone", drop=False)
    monkeypatch.setattr(together, "open_model", lambda section: world.model)  # the very base that the others are on
    changes: dict[str, Any] = {"training.epochs": 1, "training.learning_rate": 0.05}
    variants: dict[str, dict[str, Any]] = {
        "norms": {"adapter.variant": "adapter_bert[bottleneck_size=8]"},
        "drops": {"training.drop": "random", "training.batch_size": 4},
        "inverts": {"adapter.variant": "double_seq_bn_inv[reduction_factor=4]"},
    }
    made = [
        small.recipe(tmp_path, {**changes, "name": name, "output": str(tmp_path / name), **own}, train=24)
        for name, own in variants.items()
    ]
    found = together.train_together(made)
    assert all(isinstance(result, TrainResult) for result in found), found
    world.check()


def test_this_test_can_fail() -> None:
    world = World.new()
    grow(world, METHODS[0], "alone", drop=False)
    with torch.no_grad():
        world.model.base.encoder.layer[1].output.LayerNorm.bias[3] += 1e-3
    with pytest.raises(AssertionError):
        world.check()
    world.base = digest(world.model)
    with pytest.raises(AssertionError, match="t0"):
        world.check()
