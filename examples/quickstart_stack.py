"""Learn a task in one language and answer in another (MAD-X): python examples/quickstart_stack.py

A language adapter is trained per language on plain sentences, by guessing masked words. A task adapter is stacked on
top of the English one and trained on English rows; then the adapter of romanised Hindi takes the place of English.

AdapterHub's third quick start loads language adapters that were trained on whole encyclopedias, for a multilingual
encoder. These have seen a few hundred sentences: the script shows the calls, not what the method can do.
"""

import re
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from datasets import concatenate_datasets, load_dataset
from transformers import (
    AutoTokenizer,
    BertForMaskedLM,
    DataCollatorForLanguageModeling,
    EvalPrediction,
    TrainingArguments,
    set_seed,
)

from graftwork import AdapterConfig, AdapterModel, AdapterTrainer, AutoAdapterModel, Stack

DATA = Path(__file__).parent / "support_desk"
HINDI = "aur bahut bhi gaya gayi hai ho hua ka kar karo ke ki ko koi kya me mein mera meri mujhe nahi par raha se tha"

set_seed(0)
model = AutoAdapterModel.from_pretrained("minilm")
tokenizer = AutoTokenizer.from_pretrained(model.config.name_or_path)


def load(task, split):
    """Rows of a task, encoded."""
    rows = load_dataset("json", data_files=str(DATA / task / f"{split}.jsonl"), split="train")
    return rows.map(lambda batch: tokenizer(batch["text"], max_length=64, truncation=True), batched=True)


def language(row):
    """hi for romanised Hindi and its mixtures, else en."""
    return "hi" if len(set(HINDI.split()) & set(re.findall("[a-z]+", row["text"].lower()))) > 1 else "en"


def arguments(folder, epochs, learning_rate):
    """What all trainings here share."""
    return TrainingArguments(
        output_dir=f"{folder}/training",
        learning_rate=learning_rate,
        num_train_epochs=epochs,
        per_device_train_batch_size=16,
        per_device_eval_batch_size=64,
        save_strategy="no",
        use_cpu=True,
    )


def compute_accuracy(prediction: EvalPrediction):
    """The share of rows whose best label is the right one."""
    return {"acc": float((np.argmax(prediction.predictions, axis=1) == prediction.label_ids).mean())}


with TemporaryDirectory() as folder:
    # Language adapters, wider than task adapters, on the same encoder under its word-guessing head.
    lang_adapter_config = AdapterConfig.load("seq_bn", reduction_factor=2)
    speaker = AdapterModel(BertForMaskedLM.from_pretrained(model.config.name_or_path))
    tasks = ("sentiment", "intent", "category")
    sentences = concatenate_datasets([load(task, "train").select_columns(["text", "input_ids"]) for task in tasks])
    for name in ("en", "hi"):
        speaker.add_adapter(name, config=lang_adapter_config)
        speaker.train_adapter(name)
        trainer = AdapterTrainer(
            model=speaker,
            args=arguments(folder, epochs=1, learning_rate=3e-4),
            train_dataset=sentences.filter(lambda row, wanted=name: language(row) == wanted),
            data_collator=DataCollatorForLanguageModeling(tokenizer),
        )
        result = trainer.train()
        print(f"language adapter {name}: loss {result.training_loss:.2f}")
        speaker.save_adapter(f"{folder}/{name}", name)

    # The task adapter, on top of the English language adapter, which stays frozen.
    model.load_adapter(f"{folder}/en")
    model.load_adapter(f"{folder}/hi")
    labels = ["negative", "neutral", "positive"]
    model.add_adapter("mood")
    model.add_classification_head("mood", num_labels=3, id2label=dict(enumerate(labels)))
    model.train_adapter(["mood"])
    model.active_adapters = Stack("en", "mood")
    print(model.adapter_summary())

    splits = {split: load("sentiment", split) for split in ("train", "dev", "test")}
    rows = concatenate_datasets([part.add_column("split", [split] * len(part)) for split, part in splits.items()])
    rows = rows.map(lambda row: {"labels": labels.index(row["label"]), "language": language(row)}).remove_columns(
        "label"
    )
    trainer = AdapterTrainer(
        model=model,
        args=arguments(folder, epochs=5, learning_rate=2e-3),
        train_dataset=rows.filter(lambda row: (row["language"], row["split"]) == ("en", "train")),
        processing_class=tokenizer,
        compute_metrics=compute_accuracy,
    )
    trainer.train()

    english = rows.filter(lambda row: (row["language"], row["split"]) == ("en", "test"))
    print(f"{model.active_adapters} on {len(english)} rows of en: {trainer.evaluate(english)['eval_acc']:.3f}")

    # The same task adapter on top of the other language, of which it has seen no row at all.
    model.active_adapters = Stack("hi", "mood")
    hindi = rows.filter(lambda row: row["language"] == "hi")
    print(f"{model.active_adapters} on {len(hindi)} rows of hi: {trainer.evaluate(hindi)['eval_acc']:.3f}")
