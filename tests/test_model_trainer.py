"""Plain transformers' Trainer with an AdapterModel: columns, losses, checkpoints, best model, resuming, pipelines."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer, TextClassificationPipeline, Trainer, TrainerCallback, TrainingArguments

from graftwork.compose.tree import Fuse
from graftwork.model import AdapterModel, AutoAdapterModel
from tests import tiny
from tests.adapted import adapted, same, shaken, snapshot

ROWS = 24


def rows(seed: int = 0, count: int = ROWS) -> Dataset:
    """Rows whose label says whether the word 7 comes first, with a column that no model knows."""
    generator = np.random.default_rng(seed)
    ids = generator.integers(10, tiny.VOCABULARY, (count, 6))
    labels = generator.integers(0, 2, count)
    ids[labels == 1, 0] = 7
    text = [" ".join(map(str, row)) for row in ids]
    columns = {"input_ids": ids.tolist(), "attention_mask": np.ones_like(ids).tolist(), "labels": labels.tolist()}
    return Dataset.from_dict({**columns, "text": text})


def arguments(folder: Path, **options: Any) -> TrainingArguments:
    chosen = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 5,
        "num_train_epochs": 2,
        "learning_rate": 1e-2,
        "report_to": "none",
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    return TrainingArguments(**{**chosen, **options})


def prepared(seed: int = 0) -> AdapterModel:
    """A tiny model, ready to train adapter a and its head, with another adapter beside it."""
    torch.manual_seed(seed)
    model = AdapterModel(tiny.model("bert"))
    for name in ("a", "idle"):
        model.add_adapter(name, "seq_bn[reduction_factor=4]")
        model.add_classification_head(name, num_labels=2)
    model.train_adapter("a")
    return model


class Seen(TrainerCallback):
    """Keeps the gradients of every step, as they were before the optimiser took them."""

    def __init__(self) -> None:
        self.gradients: list[dict[str, Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        named = more["model"].named_parameters()
        self.gradients.append({name: p.grad.clone() for name, p in named if p.grad is not None})


def accuracy(prediction: Any) -> dict[str, float]:
    assert prediction.predictions.shape == (ROWS, 2)
    assert prediction.label_ids.shape == (ROWS,)
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def test_it_learns_and_the_base_stays_bit_identical(tmp_path: Path) -> None:
    model = prepared()
    base, idle = snapshot(model.base), snapshot(model.parts.adapters["=idle"])
    modules = dict(model.base.named_modules())
    trainer = Trainer(
        model=model,
        args=arguments(tmp_path, num_train_epochs=10, weight_decay=0.1),
        train_dataset=rows(),
        eval_dataset=rows(),
        compute_metrics=accuracy,
    )
    assert trainer.label_names == ["labels"]
    assert trainer.model_accepts_loss_kwargs is False
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_accuracy"] > 0.9 > before["eval_accuracy"]
    assert after["eval_loss"] < before["eval_loss"]
    assert same(base, snapshot(model.base))
    assert same(idle, snapshot(model.parts.adapters["=idle"]))
    assert dict(model.base.named_modules()) == modules
    assert {name for name, p in model.named_parameters() if p.grad is not None} <= {
        name for name, p in model.named_parameters() if p.requires_grad
    }


def test_columns_that_no_model_knows_are_left_out(tmp_path: Path) -> None:
    trainer = Trainer(model=prepared(), args=arguments(tmp_path), train_dataset=rows())
    batch = next(iter(trainer.get_train_dataloader()))
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    wanted = {"input_ids", "attention_mask", "token_type_ids", "position_ids", "pixel_values", "labels", "adapters"}
    assert wanted <= set(trainer._signature_columns)


@pytest.mark.parametrize("fused", [False, True])
def test_accumulated_gradients_are_those_of_one_large_batch(fused: bool, tmp_path: Path) -> None:
    def gradients(size: int, steps: int) -> dict[str, Tensor]:
        model = prepared()
        if fused:
            model.add_adapter_fusion(Fuse("a", "idle"))
            shaken(model.parts.fusions, seed=4)  # so that its penalty matters
            model.train_adapter_fusion(Fuse("a", "idle"))
        model.base.config.hidden_dropout_prob = 0.0
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        seen = Seen()
        options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps, "max_grad_norm": 0.0}
        args = arguments(tmp_path, **options, max_steps=1)
        Trainer(model=model, args=args, train_dataset=rows(count=16), callbacks=[seen]).train()
        return seen.gradients[0]

    whole, parts = gradients(16, 1), gradients(4, 4)
    assert whole.keys() == parts.keys()
    assert len(whole) == 3 * 4 + 4  # a fusion's key has a bias that nothing depends on
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-4, atol=1e-6)


def test_checkpoints_hold_adapters_and_heads_only(tmp_path: Path) -> None:
    model = prepared()
    Trainer(model=model, args=arguments(tmp_path, save_strategy="epoch"), train_dataset=rows()).train()
    folder = tmp_path / "checkpoint-6"
    stored = load_file(folder / "model.safetensors")
    assert same(dict(sorted(stored.items())), dict(sorted(snapshot(model).items())))
    assert {key.split(".")[1] for key in stored} == {"adapters", "heads"}
    numbers = sum(parameter.numel() for parameter in model.parts.parameters())
    assert 4 * numbers < (folder / "model.safetensors").stat().st_size < 4 * numbers + 6000
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert (folder / "optimizer.pt").stat().st_size < 8 * trained + 20000  # two moments, of what trains alone


def test_the_best_model_comes_back(tmp_path: Path) -> None:
    model = prepared()
    args = arguments(
        tmp_path,
        num_train_epochs=3,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="score",
        greater_is_better=True,
    )
    scores = iter([0.5, 0.9, 0.1])  # the second epoch is the best
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=rows(),
        eval_dataset=rows(1),
        compute_metrics=lambda prediction: {"score": next(scores)},
    )
    trainer.train()
    best, final = (load_file(tmp_path / f"checkpoint-{step}" / "model.safetensors") for step in (6, 9))
    assert all(torch.equal(best[key], value) for key, value in model.state_dict().items())
    assert not all(torch.equal(final[key], value) for key, value in model.state_dict().items())


def test_a_resumed_run_ends_where_the_unbroken_one_does(tmp_path: Path) -> None:
    def run(folder: str, stop: int | None, resume: bool) -> AdapterModel:
        class Stop(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
                control.should_training_stop = state.global_step == stop

        model = prepared(seed=7 if resume else 0)  # a resumed run begins with other weights, and must not keep them
        args = arguments(tmp_path / folder, num_train_epochs=3, save_strategy="steps", save_steps=4)
        Trainer(model=model, args=args, train_dataset=rows(), callbacks=[Stop()]).train(resume_from_checkpoint=resume)
        return model

    whole = run("whole", None, False)
    run("broken", 4, False)
    resumed = run("broken", None, True)
    for key, value in whole.state_dict().items():
        if "idle" not in key or "adapters" in key:
            torch.testing.assert_close(resumed.state_dict()[key], value, rtol=1e-5, atol=1e-7)
    assert same(snapshot(whole.base), snapshot(resumed.base))


def test_two_runs_with_one_seed_are_equal(tmp_path: Path) -> None:
    def run() -> AdapterModel:
        model = prepared()
        Trainer(model=model, args=arguments(tmp_path, seed=5), train_dataset=rows()).train()
        return model

    assert same(snapshot(run()), snapshot(run()))


@pytest.mark.parametrize("kind", ["regression", "tagging"])
def test_other_heads_train_as_well(kind: str, tmp_path: Path) -> None:
    model = AdapterModel(tiny.model("bert"))
    model.add_adapter("a")
    data = rows().remove_columns("labels")
    if kind == "regression":
        model.add_regression_head("a")
        data = data.add_column("labels", np.linspace(0, 1, ROWS).tolist())
    else:
        model.add_tagging_head("a", num_labels=3)
        data = data.add_column("labels", [[-100, 0, 1, 2, 0, -100]] * ROWS)
    model.train_adapter("a")
    shapes: list[tuple[int, ...]] = []

    def metrics(prediction: Any) -> dict[str, float]:
        shapes.append(prediction.predictions.shape)
        return {}

    args = arguments(tmp_path, max_steps=6)
    trainer = Trainer(model=model, args=args, train_dataset=data, eval_dataset=data, compute_metrics=metrics)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before
    assert shapes[-1] == ((ROWS, 1) if kind == "regression" else (ROWS, 6, 3))


def test_recomputed_activations_under_trainer(tmp_path: Path) -> None:
    def run(recompute: bool) -> dict[str, Tensor]:
        model = prepared()
        model.base.config.hidden_dropout_prob = 0.0
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        seen = Seen()
        args = arguments(tmp_path, max_steps=1, activation_checkpointing=recompute)
        Trainer(model=model, args=args, train_dataset=rows(), callbacks=[seen]).train()
        return seen.gradients[0]

    plain, recomputed = run(False), run(True)
    assert plain.keys() == recomputed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient, rtol=1e-4, atol=1e-7)


def test_bfloat16_base(tmp_path: Path) -> None:
    model = AdapterModel(tiny.model("bert").to(torch.bfloat16))
    model.add_adapter("a")
    model.add_classification_head("a")
    model.train_adapter("a")
    trainer = Trainer(model=model, args=arguments(tmp_path), train_dataset=rows(), eval_dataset=rows(1))
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_pipelines_say_the_labels_of_the_head_that_answers() -> None:
    model = AutoAdapterModel.from_pretrained("minilm")
    tokenizer = AutoTokenizer.from_pretrained(model.config.name_or_path)
    for name, labels in {"mood": ("sad", "glad"), "size": ("small", "medium", "large")}.items():
        model.add_adapter(name)
        model.add_classification_head(name, num_labels=len(labels), id2label=dict(enumerate(labels)))
    shaken(model.parts, seed=3)
    model.eval()
    classifier = TextClassificationPipeline(model=model, tokenizer=tokenizer, device=-1)
    texts = ["what a fine day", "the parcel never came", "it is far too large"]
    with torch.no_grad():
        for name in ("mood", "size"):
            model.set_active_adapters(name)
            labels = model.parts.head_configs[name].labels
            for text, answer in zip(texts, classifier(texts), strict=True):
                shares = model(**tokenizer(text, return_tensors="pt")).logits.softmax(-1)[0]
                assert answer["label"] == labels[int(shares.argmax())]
                assert answer["score"] == pytest.approx(float(shares.max()), rel=1e-4)
            assert {entry["label"] for entry in classifier(texts[0], top_k=None)} == set(labels)


def test_a_trained_adapter_is_the_same_after_loading(tmp_path: Path) -> None:
    model = prepared()
    Trainer(model=model, args=arguments(tmp_path / "run"), train_dataset=rows()).train()
    model.eval()
    model.save_adapter(tmp_path / "a", "a")
    other = AdapterModel(tiny.model("bert"))
    other.load_adapter(tmp_path / "a", set_active=True)
    given = tiny.inputs("bert")
    assert torch.equal(other(**given).logits, model(**given).logits)
    untrained = adapted(heads=["a"])
    assert not torch.equal(other(**given).logits, untrained(**given, adapters="a").logits)
