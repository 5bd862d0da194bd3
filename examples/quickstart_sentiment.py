"""Train a sentiment adapter, keep it, and use it again: python examples/quickstart_sentiment.py

The calls are those of AdapterHub's first quick start; only the import line is another.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from datasets import load_dataset
from transformers import AutoTokenizer, EvalPrediction, TextClassificationPipeline, TrainingArguments, set_seed

from graftwork import AdapterTrainer, AutoAdapterModel

DATA = Path(__file__).parent / "support_desk" / "sentiment"

set_seed(0)
files = {split: str(DATA / f"{split}.jsonl") for split in ("train", "dev", "test")}
dataset = load_dataset("json", data_files=files).class_encode_column("label")
labels = dataset["train"].features["label"].names

model = AutoAdapterModel.from_pretrained("minilm")
tokenizer = AutoTokenizer.from_pretrained(model.config.name_or_path)


def encode_batch(batch):
    """Encode a batch of rows."""
    return tokenizer(batch["text"], max_length=64, truncation=True)


dataset = dataset.map(encode_batch, batched=True).rename_column("label", "labels")

# Add an adapter and a head of the same name, and train these two: the encoder stays as it is.
model.add_adapter("sentiment", config="seq_bn")
model.add_classification_head("sentiment", num_labels=len(labels), id2label=dict(enumerate(labels)))
model.train_adapter("sentiment")
print(model.adapter_summary())


def compute_accuracy(prediction: EvalPrediction):
    """The share of rows whose best label is the right one."""
    return {"acc": float((np.argmax(prediction.predictions, axis=1) == prediction.label_ids).mean())}


with TemporaryDirectory() as folder:
    trainer = AdapterTrainer(
        model=model,
        args=TrainingArguments(
            output_dir=f"{folder}/training",
            learning_rate=2e-3,
            num_train_epochs=6,
            per_device_train_batch_size=16,
            per_device_eval_batch_size=64,
            save_strategy="no",
            logging_steps=50,
            use_cpu=True,
        ),
        train_dataset=dataset["train"],
        eval_dataset=dataset["test"],
        processing_class=tokenizer,
        compute_metrics=compute_accuracy,
    )
    print(f"accuracy before training: {trainer.evaluate()['eval_acc']:.3f}")
    trainer.train()
    print(f"accuracy after training: {trainer.evaluate()['eval_acc']:.3f}")

    # transformers logs that it does not know this class of model; the pipeline works all the same.
    classifier = TextClassificationPipeline(model=model, tokenizer=tokenizer, device=-1)
    for text in ("Bahut badhiya phone hai, love it!", "The zip broke on the first day."):
        print(f"{text} -> {classifier(text)[0]['label']}")

    # The adapter and its head are one small folder, which any model on the same encoder can load.
    model.save_adapter(f"{folder}/sentiment", "sentiment")
    other = AutoAdapterModel.from_pretrained("minilm")
    other.load_adapter(f"{folder}/sentiment", load_as="mood")
    other.set_active_adapters("mood")
    trainer = AdapterTrainer(
        model=other,
        args=trainer.args,
        eval_dataset=dataset["test"],
        processing_class=tokenizer,
        compute_metrics=compute_accuracy,
    )
    print(f"accuracy after loading: {trainer.evaluate()['eval_acc']:.3f}")

# Without the adapter the model is the encoder that it was.
model.set_active_adapters(None)
model.delete_adapter("sentiment")
