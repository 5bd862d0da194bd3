"""Fuse three adapters for a task that none of them was trained for: python examples/quickstart_fusion.py

AdapterHub's second quick start loads its three adapters from a hub; here they are trained first, in a few seconds each.
Then AdapterFusion learns, token by token, which of them to listen to, while all three stay as they are.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from datasets import load_dataset
from transformers import AutoTokenizer, EvalPrediction, TrainingArguments, set_seed

from graftwork import AdapterTrainer, AutoAdapterModel, Fuse

DATA = Path(__file__).parent / "support_desk"

set_seed(0)
model = AutoAdapterModel.from_pretrained("minilm")
tokenizer = AutoTokenizer.from_pretrained(model.config.name_or_path)


def load(task):
    """The rows of a task, encoded, and its labels."""
    files = {split: str(DATA / task / f"{split}.jsonl") for split in ("train", "test")}
    dataset = load_dataset("json", data_files=files).class_encode_column("label")
    labels = dataset["train"].features["label"].names
    dataset = dataset.map(lambda batch: tokenizer(batch["text"], max_length=64, truncation=True), batched=True)
    return dataset.rename_column("label", "labels"), dict(enumerate(labels))


def compute_accuracy(prediction: EvalPrediction):
    """The share of rows whose best label is the right one."""
    return {"acc": float((np.argmax(prediction.predictions, axis=1) == prediction.label_ids).mean())}


def trainer_for(model, dataset, folder, epochs, learning_rate):
    """A trainer of whatever the model was told to train."""
    return AdapterTrainer(
        model=model,
        args=TrainingArguments(
            output_dir=f"{folder}/training",
            learning_rate=learning_rate,
            num_train_epochs=epochs,
            per_device_train_batch_size=16,
            per_device_eval_batch_size=64,
            save_strategy="no",
            use_cpu=True,
        ),
        train_dataset=dataset["train"],
        eval_dataset=dataset["test"],
        processing_class=tokenizer,
        compute_metrics=compute_accuracy,
    )


with TemporaryDirectory() as folder:
    # Three adapters, each trained alone on its own task.
    for task in ("sentiment", "category", "intent"):
        dataset, id2label = load(task)
        model.add_adapter(task, config="seq_bn")
        model.add_classification_head(task, num_labels=len(id2label), id2label=id2label)
        model.train_adapter(task)
        trainer = trainer_for(model, dataset, folder, epochs=3, learning_rate=3e-3)
        trainer.train()
        print(f"{task} alone: {trainer.evaluate()['eval_acc']:.3f}")
    model.save_all_adapters(folder)

    # A new model with the three of them, without their heads, and a fusion over them.
    model = AutoAdapterModel.from_pretrained("minilm")
    model.load_adapter(f"{folder}/sentiment", load_as="sentiment", with_head=False)
    model.load_adapter(f"{folder}/category", load_as="category", with_head=False)
    model.load_adapter(f"{folder}/intent", load_as="intent", with_head=False)
    model.add_adapter_fusion(Fuse("sentiment", "category", "intent"))
    model.set_active_adapters(Fuse("sentiment", "category", "intent"))

    # A new task over them: is it a complaint or a demand, or can it wait?
    URGENT = {"cancel_order", "complaint", "payment_issue", "refund_status"}
    dataset, id2label = load("intent")
    urgent = {number for number, name in id2label.items() if name in URGENT}
    dataset = dataset.map(lambda row: {"labels": int(row["labels"] in urgent)})
    model.add_classification_head("urgent", num_labels=2, id2label={0: "can wait", 1: "urgent"})

    # Train the fusion and the head; the encoder and the three adapters stay frozen.
    adapter_setup = Fuse("sentiment", "category", "intent")
    model.train_adapter_fusion(adapter_setup)
    print(model.adapter_summary())
    trainer = trainer_for(model, dataset, folder, epochs=2, learning_rate=1e-3)
    print(f"fused, before training: {trainer.evaluate()['eval_acc']:.3f}")
    trainer.train()
    print(f"fused, after training: {trainer.evaluate()['eval_acc']:.3f}")

    model.save_adapter_fusion(f"{folder}/fusion", "sentiment,category,intent")
    model.save_head(f"{folder}/urgent", "urgent")
    print("saved:", ", ".join(sorted(path.name for path in Path(folder).iterdir() if path.name != "training")))
    model.set_active_adapters(None)
    model.delete_adapter_fusion("sentiment,category,intent")
    model.delete_adapter("sentiment")
