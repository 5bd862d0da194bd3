"""AdapterTrainer as people use it: their own arguments, data sets and collators, as with transformers' Trainer."""

from pathlib import Path
from typing import Any

import datasets
import numpy
import pytest
import safetensors.torch
import torch
from torch.utils.data import RandomSampler, SequentialSampler
from transformers import BertForSequenceClassification, DataCollatorWithPadding, TrainingArguments

from graftwork.compose.tree import Fuse, Stack
from graftwork.errors import AdapterError, PackageError
from graftwork.model import AdapterModel
from graftwork.tasks.encoded import Encoded
from graftwork.tasks.kinds import task_class
from graftwork.tasks.text import TextEncoder
from graftwork.train.batches import EncodedRows, as_it_is
from graftwork.train.sampler import LengthGroupedSampler
from graftwork.train.trainer import AdapterTrainer, row_lengths
from tests import tiny
from tests.train import small


def model() -> AdapterModel:
    made = AdapterModel(tiny.model("bert"))
    made.add_adapter("mood", "seq_bn[reduction_factor=4]")
    made.add_classification_head("mood", num_labels=2)
    made.train_adapter("mood")
    return made


def rows(count: int = 24, padding: Any = False) -> list[dict[str, Any]]:
    tokenizer, found = small.tokenizer(), []
    for row in small.texts(count):
        encoded = tokenizer(row["text"], padding=padding, max_length=32 if padding else None)
        found.append({**encoded, "labels": int(row["label"] == "good"), "text": row["text"]})
    return found


def encoder() -> TextEncoder:
    return TextEncoder(small.tokenizer(), 32, "truncate")


def encoded() -> list[Encoded]:
    return task_class("classification")(labels=("bad", "good")).encode(small.texts(12), encoder(), with_labels=True)


def settings(folder: Path, **changes: Any) -> TrainingArguments:
    options = {"num_train_epochs": 1, "per_device_train_batch_size": 4, "learning_rate": 5e-3, "disable_tqdm": True}
    return TrainingArguments(output_dir=str(folder), dataloader_pin_memory=False, **{**options, **changes})


def accuracy(prediction: Any) -> dict[str, float]:
    return {"accuracy": float((numpy.argmax(prediction.predictions, axis=1) == prediction.label_ids).mean())}


def test_training_with_a_data_set_and_a_padding_collator(tmp_path: Path) -> None:
    made = model()
    base = {name: value.clone() for name, value in made.base.state_dict().items()}
    before = {name: value.clone() for name, value in made.state_dict().items()}
    trainer = AdapterTrainer(
        model=made,
        args=settings(tmp_path, save_strategy="epoch", eval_strategy="epoch", num_train_epochs=2),
        train_dataset=datasets.Dataset.from_list(rows()),
        eval_dataset=datasets.Dataset.from_list(rows(8)),
        processing_class=small.tokenizer(),
        compute_metrics=accuracy,
    )
    trainer.train()
    assert all(torch.equal(value, base[name]) for name, value in made.base.state_dict().items())
    assert any(not torch.equal(value, before[name]) for name, value in made.state_dict().items())
    saved = safetensors.torch.load_file(tmp_path / "checkpoint-12" / "model.safetensors")
    assert saved.keys() == made.state_dict().keys()
    assert all(torch.equal(value, saved[name]) for name, value in made.state_dict().items())
    assert (tmp_path / "checkpoint-12" / "sealed.json").is_file()
    assert set(trainer.evaluate()) >= {"eval_loss", "eval_accuracy"}


def test_training_with_lists_and_default_collation(tmp_path: Path) -> None:
    padded = [{key: value for key, value in row.items() if key != "text"} for row in rows(padding="max_length")]
    trainer = AdapterTrainer(model=model(), args=settings(tmp_path, save_strategy="no"), train_dataset=padded)
    assert trainer.train().global_step == 6


def test_resuming_by_the_trainer_itself(tmp_path: Path) -> None:
    weights = []
    for folder, stops in (("unbroken", [None]), ("broken", [5, None])):
        for stop in stops:
            torch.manual_seed(0)
            made = model()
            arguments = settings(tmp_path / folder, save_strategy="steps", save_steps=5, num_train_epochs=2)
            trainer = AdapterTrainer(
                model=made,
                args=arguments,
                train_dataset=rows(),
                data_collator=DataCollatorWithPadding(small.tokenizer()),
            )
            found = sorted((tmp_path / folder).glob("checkpoint-*"))
            trainer.train(resume_from_checkpoint=str(found[0]) if stop is None and len(stops) > 1 else None)
            for checkpoint in (tmp_path / folder).glob("checkpoint-1*") if stop else ():
                for file in checkpoint.iterdir():
                    file.unlink()
                checkpoint.rmdir()
        weights.append(made.state_dict())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


@pytest.mark.parametrize(
    ("strategy", "sampler"), [("random", LengthGroupedSampler), ("group_by_length", LengthGroupedSampler),
                              ("sequential", SequentialSampler)]
)  # fmt: skip
def test_who_orders_the_rows(tmp_path: Path, strategy: str, sampler: type) -> None:
    trainer = AdapterTrainer(
        model=model(), args=settings(tmp_path, train_sampling_strategy=strategy), train_dataset=rows()
    )
    assert type(trainer._get_train_sampler()) is sampler
    assert not isinstance(trainer._get_eval_sampler(rows(4)), RandomSampler)
    scored = trainer.get_eval_dataloader([{**row, "input_ids": row["input_ids"][:3]} for row in rows(4)])
    assert isinstance(scored.batch_sampler.sampler, SequentialSampler)


def test_lengths_of_rows() -> None:
    plain = rows(6)
    lengths = [len(row["input_ids"]) for row in plain]
    assert len(set(lengths)) > 2
    assert list(row_lengths(plain) or ()) == lengths
    assert row_lengths(datasets.Dataset.from_list(plain)) == lengths
    assert row_lengths([{"pixel_values": 1}]) is None
    assert row_lengths([]) is None


def test_a_model_that_learns_nothing_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    frozen = model()
    frozen.parts.requires_grad_(False)
    with pytest.raises(AdapterError, match=r"every parameter is frozen\. Call model\.train_adapter\(name\).*mood"):
        AdapterTrainer(model=frozen, args=settings(tmp_path / "out"), train_dataset=rows())
    empty = AdapterModel(tiny.model("bert"))
    with pytest.raises(AdapterError, match="none yet: call add_adapter first"):
        AdapterTrainer(model=empty, args=settings(tmp_path / "out"), train_dataset=rows())
    assert not (tmp_path / "out").exists()
    AdapterTrainer(model=frozen, args=settings(tmp_path / "out"), eval_dataset=rows())  # to score needs no training


def test_an_adapter_that_would_not_run_is_refused(tmp_path: Path) -> None:
    fresh = AdapterModel(tiny.model("bert"))
    fresh.add_adapter("mood")
    with pytest.raises(AdapterError, match=r"mood would be trained but does not run: the active setup is none"):
        AdapterTrainer(model=fresh, args=settings(tmp_path), train_dataset=rows())
    made = model()
    made.add_adapter("other")
    made.train_adapter("mood")
    made.set_active_adapters("other")
    with pytest.raises(AdapterError, match=r"mood would be trained .* is other\. Call model\.train_adapter\(name\)"):
        AdapterTrainer(model=made, args=settings(tmp_path), train_dataset=rows())
    made.set_active_adapters(Stack("other", "mood"))
    AdapterTrainer(model=made, args=settings(tmp_path), train_dataset=rows())
    made.add_adapter_fusion(Fuse("mood", "other"))
    made.train_adapter_fusion(Fuse("mood", "other"))
    AdapterTrainer(model=made, args=settings(tmp_path), train_dataset=rows())
    made.set_active_adapters("mood")
    with pytest.raises(AdapterError, match=r"mood,other would be trained but does not run: the active setup is mood"):
        AdapterTrainer(model=made, args=settings(tmp_path), train_dataset=rows())


def test_a_bare_transformers_model_is_refused(tmp_path: Path) -> None:
    bare = BertForSequenceClassification(tiny.model("bert").config)
    with pytest.raises(AdapterError, match=r"this is a BertForSequenceClassification; wrap it, AdapterModel\(model\)"):
        AdapterTrainer(model=bare, args=settings(tmp_path), train_dataset=rows())


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    trainer = AdapterTrainer(model=model(), args=settings(tmp_path, save_strategy="epoch"), train_dataset=rows())
    trainer.data_collator = DataCollatorWithPadding(small.tokenizer())
    trainer.train()
    other = model()
    other.add_adapter("second")
    trainer = AdapterTrainer(model=other, args=settings(tmp_path), train_dataset=rows())
    with pytest.raises(PackageError, match=r"does not fit this model: tensor '.*second.*' is missing"):
        trainer.train(resume_from_checkpoint=True)


@pytest.mark.parametrize("base_dropout", [True, False])
def test_what_is_frozen_rests_where_it_is_told_to(tmp_path: Path, base_dropout: bool) -> None:
    made = model()
    made.add_adapter("below", "seq_bn[reduction_factor=4,dropout=0.5]")
    made.train_adapter("mood")
    made.set_active_adapters(Stack("below", "mood"))
    seen: set[tuple[bool, bool, bool, bool]] = set()

    def look(*_: Any) -> None:
        parts = (made.parts.adapters["=below"], made.parts.adapters["=mood"], made.parts.heads["=mood"])
        seen.add((made.base.encoder.layer[1].training, *(part.training for part in parts)))  # type: ignore[arg-type]

    made.base.encoder.layer[1].register_forward_pre_hook(look)
    made.add_classification_head("idle", num_labels=2)
    made.active_head = "mood"
    trainer = AdapterTrainer(
        model=made,
        args=settings(tmp_path, remove_unused_columns=False),
        train_dataset=EncodedRows(encoded(), encoder()),
        data_collator=as_it_is,
    )
    trainer.base_dropout = base_dropout
    trainer.train()
    assert seen == {(base_dropout, base_dropout, True, True)}


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_step_makes_no_logits_that_its_loss_does_not_read(tmp_path: Path, smoothing: float) -> None:
    made = AdapterModel(tiny.model("bert"))
    made.add_adapter("en", "seq_bn[reduction_factor=4]")
    made.add_masked_lm_head("en")
    made.train_adapter("en")
    seen: list[tuple[bool, int]] = []
    made.parts.head("en").register_forward_hook(lambda head, _, out: seen.append((head.training, out[..., 0].numel())))
    texts = [{"input_ids": [5, 6, 7, 8], "labels": [-100, 6, -100, 8 - number]} for number in range(4)]
    arguments = settings(tmp_path, label_smoothing_factor=smoothing)
    trainer = AdapterTrainer(model=made, args=arguments, train_dataset=texts, eval_dataset=texts)
    trainer.train()
    metrics = trainer.evaluate()
    assert seen == [(True, 16 if smoothing else 8), (False, 16)]
    assert numpy.isfinite(metrics["eval_loss"])
