"""A step's loss is one mean over its items: gradients accumulated over small batches are those of one large batch."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import TrainerCallback, TrainingArguments

from graftwork.compose.tree import Stack
from graftwork.model import AdapterModel
from graftwork.tasks.kinds import task_class
from graftwork.tasks.text import TextEncoder
from graftwork.train.batches import EncodedRows, as_it_is
from graftwork.train.full import FullModel
from graftwork.train.language import Cycle
from graftwork.train.mean import items
from graftwork.train.setup import add_task_head
from graftwork.train.trainer import AdapterTrainer
from tests import tiny
from tests.train import small, test_kinds

ROWS, SMALL, LARGE = 22, 3, 12  # steps of 12 and 10 rows; batches of 3, 3, 3, 3 and 3, 3, 3, 1


def without_dropout(family: str) -> Any:
    base = tiny.model(family)
    for module in base.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0  # of T5's attention
    return base


def _tagging(draw: Any) -> dict[str, Any]:
    said = test_kinds.words(draw, draw.randint(1, 12))
    return {"tokens": said, "tags": ["A" if word in small.GOOD else "B" for word in said]}


def _parsing(draw: Any) -> dict[str, Any]:
    """Five words: this head's softmax goes over the padding too, so that its loss is another for other lengths."""
    return {"tokens": test_kinds.words(draw, 5), "heads": [0, 1, 1, 1, 1], "tags": ["root", *["part"] * 4]}


# task kind -> base, how a row is made, an adapter
KINDS: dict[str, tuple[str, Any, str]] = {
    "tagging": ("bert", _tagging, "seq_bn[reduction_factor=4]"),
    "masked_lm": ("bert", test_kinds._language, "seq_bn[reduction_factor=4]"),
    "causal_lm": ("llama", test_kinds._language, "lora[r=4]"),
    "seq2seq_lm": ("t5", test_kinds._said, "seq_bn[reduction_factor=4]"),
    "question_answering": ("bert", test_kinds._answering, "seq_bn[reduction_factor=4]"),
    "multiple_choice": ("bert", test_kinds._choice, "seq_bn[reduction_factor=4]"),
    "dependency_parsing": ("bert", _parsing, "seq_bn[reduction_factor=4]"),
    "multilabel": ("bert", test_kinds._multilabel, "seq_bn[reduction_factor=4]"),
    "causal_lm behind prompts": ("llama", test_kinds._language, "prompt_tuning[prompt_length=2]"),
}


class Kept(TrainerCallback):  # type: ignore[misc]
    """The gradients of every step."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model, self.gradients = model, []  # type: ignore[var-annotated]

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        named = self.model.named_parameters()
        self.gradients.append({name: one.grad.clone() for name, one in named if one.grad is not None})


def prepared(kind: str) -> tuple[AdapterModel, EncodedRows]:
    family, make, variant = KINDS[kind]
    tokenizer, draw = small.tokenizer(), test_kinds.Draw(kind)
    tokenizer.mask_token = "[UNK]"
    encoder = TextEncoder(tokenizer, 48, "truncate")
    labels = {"tagging": ("A", "B"), "multilabel": ("bad", "good"), "dependency_parsing": ("part", "root")}
    task_kind = kind.split()[0]
    known = ("0", "1", "2") if task_kind == "multiple_choice" else labels.get(task_kind, ())
    task = task_class(task_kind)(labels=known, max_length=48)
    made = [make(draw) for _ in range(ROWS)]
    if task_kind == "multiple_choice":
        made = [{**row, "label": str(row["label"])} for row in made]
    rows = EncodedRows(task.encode(made, encoder, with_labels=True), encoder, task.redraw(encoder, 0))
    torch.manual_seed(0)
    model = AdapterModel(without_dropout(family))
    model.add_adapter("a", variant)
    add_task_head(model, task, "a")
    for module in model.parts.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model.train_adapter("a")
    return model, rows


def trainer_of(learner: torch.nn.Module, rows: EncodedRows, folder: Path, size: int, *callbacks: Any) -> AdapterTrainer:
    """One epoch of steps of LARGE rows, in batches of `size`, that change nothing."""
    args = TrainingArguments(
        output_dir=str(folder), num_train_epochs=1, per_device_train_batch_size=size, learning_rate=0.0,
        gradient_accumulation_steps=LARGE // size, train_sampling_strategy="sequential", disable_tqdm=True,
        report_to="none", save_strategy="no", logging_steps=1, remove_unused_columns=False, max_grad_norm=0.0,
        dataloader_pin_memory=False, use_cpu=True, lr_scheduler_type="constant",
    )  # fmt: skip
    return AdapterTrainer(
        model=learner, args=args, data_collator=as_it_is, train_dataset=rows, callbacks=list(callbacks)
    )


def losses_of(trainer: AdapterTrainer) -> list[float]:
    """The loss of every step."""
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def ran(kind: str, folder: Path, size: int, full: bool = False) -> tuple[list[dict[str, Tensor]], list[float]]:
    """The gradients of every step of an epoch, and the losses."""
    model, rows = prepared(kind)
    learner: Any = FullModel(model, "a") if full else model
    kept = Kept(learner)
    losses = losses_of(trainer_of(learner, rows, folder, size, kept))
    return kept.gradients, losses


OFTEN = ("tagging", "masked_lm", "causal_lm behind prompts")  # the others have less in them that can go wrong
SOME = [kind if kind in OFTEN else pytest.param(kind, marks=pytest.mark.full) for kind in KINDS]


@pytest.mark.parametrize("kind", SOME)
def test_small_batches_that_share_a_step_are_one_large_batch(kind: str, tmp_path: Path) -> None:
    (whole, losses), (parts, shared) = ran(kind, tmp_path, LARGE), ran(kind, tmp_path, SMALL)
    assert len(whole) == len(parts) == 2
    assert shared == pytest.approx(losses, rel=1e-5)
    for one, other in zip(whole, parts, strict=True):
        largest = max(float(gradient.abs().max()) for gradient in one.values())
        assert one.keys() == other.keys()
        assert largest > 0
        for name, gradient in one.items():
            torch.testing.assert_close(other[name], gradient, rtol=0, atol=1e-5 * largest)


def test_so_are_those_of_a_whole_model_that_learns(tmp_path: Path) -> None:
    (whole, losses), (parts, shared) = ran("tagging", tmp_path, LARGE, True), ran("tagging", tmp_path, SMALL, True)
    assert shared == pytest.approx(losses, rel=1e-5)
    for one, other in zip(whole, parts, strict=True):
        largest = max(float(gradient.abs().max()) for gradient in one.values())
        for name, gradient in one.items():
            torch.testing.assert_close(other[name], gradient, rtol=0, atol=1e-5 * largest)


@pytest.mark.parametrize("size", [LARGE, SMALL])
def test_each_step_of_a_cycle_counts_the_items_of_its_own_composition(size: int, tmp_path: Path) -> None:
    """Behind prompts the first token of a text is asked for too, so that a batch holds more items than without them."""
    model, rows = prepared("causal_lm")
    model.add_adapter("prompts", "prompt_tuning[prompt_length=2]")
    model.add_adapter("plain", "lora[r=4]")
    cycle = Cycle(model, [Stack("plain", "a"), Stack("prompts", "a")], seed=0)
    model.set_active_adapters(Stack("plain", "a"))
    trainer = trainer_of(model, rows, tmp_path, size)
    trainer.cycle = cycle
    found = losses_of(trainer)
    assert model.active_adapters == Stack("plain", "a")
    model.eval()
    with torch.no_grad():
        expected = [
            float(model(**rows.__getitems__(numbers), adapters=cycle.at(step)).loss)
            for step, numbers in enumerate((list(range(LARGE)), list(range(LARGE, ROWS))))
        ]
    assert {cycle.at(0), cycle.at(1)} == {Stack("plain", "a"), Stack("prompts", "a")}
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", SOME)
def test_items_are_what_the_loss_is_a_mean_over(kind: str) -> None:
    """Taking one row twice moves the mean as far as its own items weigh: L₂ = (n·L + n₁·L₁) / (n + n₁)."""
    model, rows = prepared(kind)
    model.eval()

    def mean(numbers: list[int]) -> tuple[float, float]:
        batch = rows.__getitems__(numbers)
        with torch.no_grad():
            return float(model(**batch).loss), float(items(model, batch))

    (loss, count), (own, alone) = mean(list(range(9))), mean([4])
    twice, more = mean([*range(9), 4])
    assert more == count + alone
    assert twice == pytest.approx((count * loss + alone * own) / more, rel=1e-5)
