"""A training run of seconds: a tiny random BERT with its own vocabulary, rows that can be learned, and a recipe."""

import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from graftwork import recipe as recipes
from graftwork.recipe import Recipe
from tests import tiny

GOOD = ("good", "fine", "great")
BAD = ("bad", "poor", "awful")
FILLERS = ("the", "a", "very", "film", "parcel", "price", "was", "is", "so", "and", "we", "they")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


def tokenizer() -> PreTrainedTokenizerFast:
    """Whole words, lower case, as BERT frames them; at most 64 pieces."""
    words = {word: number for number, word in enumerate([*SPECIAL, *GOOD, *BAD, *FILLERS])}
    made = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=64,
    )


def model_folder(folder: Path, seed: int = 0) -> Path:
    """A folder with a tiny BERT (with dropout) and its tokenizer."""
    tiny.model("bert", seed).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def texts(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Classification rows of many lengths: some words tell the mood, the others nothing."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        mood = (GOOD, BAD)[number % 2]
        words = [draw.choice(mood), *draw.choices([*mood * 4, *FILLERS], k=draw.randint(0, 20))]
        draw.shuffle(words)
        rows.append({"text": " ".join(words), "label": ("good", "bad")[number % 2]})
    return rows


def write(file: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Rows as JSON lines."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf8")
    return file


def recipe(folder: Path, changes: Mapping[str, Any] | None = None, *, train: int = 40, dev: int = 12) -> Recipe:
    """A recipe whose model and data lie in `folder`, which gets them where they are missing."""
    if not (folder / "base").is_dir():
        model_folder(folder / "base")
    for split, count, seed in (("train", train, 0), ("dev", dev, 1), ("test", dev, 2)):
        if not (folder / f"{split}.jsonl").is_file():
            write(folder / f"{split}.jsonl", texts(count, seed))
    text = """
        model: {name: ./base}
        adapter: {variant: "seq_bn[reduction_factor=4]"}
        training: {epochs: 2, batch_size: 8, learning_rate: 1e-2, max_seq_length: 32, logging_steps: 2}
        task: {kind: classification}
        data: {train: train.jsonl, dev: dev.jsonl, test: test.jsonl}
    """
    made = recipes.loads(text, folder=folder, name="mood")
    return recipes.override(made, {"output": str(folder / "run"), **(changes or {})})
