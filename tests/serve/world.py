"""Real packages in real registries, for the tests of serving: on tiny random models, and on MiniLM."""

import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from graftwork.core.backbone import load_tokenizer
from graftwork.core.heads import HeadConfig
from graftwork.manifest import TaskSpec
from graftwork.model import AdapterModel, AutoAdapterModel
from graftwork.packing import Provenance
from graftwork.registry.package import Package
from graftwork.registry.store import Registry
from graftwork.serve.engine import Engine
from graftwork.tasks.kinds import task_from_spec
from graftwork.tasks.text import vocabulary_digest
from tests import tiny

CLASSES = TaskSpec(kind="classification", max_length=64, labels=("no", "perhaps", "yes"))
PAIRS = TaskSpec(kind="pair", max_length=64, labels=("follows", "contradicts"))
VALUES = TaskSpec(kind="regression", max_length=64)
TAGS = TaskSpec(kind="tagging", max_length=64, labels=("O", "B-PLACE", "I-PLACE"))


def tokenizer(types: bool = True) -> PreTrainedTokenizerFast:
    """One piece a word, w0 to w94, for the tiny models' 99 ids; `types`: whether it makes token_type_ids."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{number}" for number in range(tiny.VOCABULARY - 4))]
    made = Tokenizer(models.WordLevel({piece: number for number, piece in enumerate(pieces)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = ["input_ids", "token_type_ids", "attention_mask"] if types else ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", model_input_names=names, clean_up=False
    )


def text(words: int, seed: int = 0) -> str:
    """A text of that many words."""
    draw = torch.Generator().manual_seed(seed + 1000 * words)
    return " ".join(f"w{number}" for number in torch.randint(95, (words,), generator=draw).tolist())


class World:
    """A registry, and the base and tokenizer that its packages are for."""

    def __init__(self, root: Path, family: str = "bert") -> None:
        self.family = family
        self.registry = Registry(root / "registry")
        bare = family in ("roberta", "llama", "gpt2", "t5")
        self.tokenizer = load_tokenizer("minilm") if family == "minilm" else tokenizer(types=not bare)
        self.seed = 0

    def model(self) -> AdapterModel:
        """The base, without adapters."""
        if self.family == "minilm":
            return AutoAdapterModel.from_pretrained("minilm")
        return AdapterModel(tiny.model(self.family))

    @cached_property
    def bench(self) -> AdapterModel:
        """The model on which packages are made, one after the other; its fingerprint is computed once."""
        return self.model()

    def engine(self, adapter_cache_size: int = 32, max_batch_rows: int = 32, max_batch_tokens: int = 4096) -> Engine:
        """A new engine for the registry."""
        return Engine(
            self.model(),
            self.tokenizer,
            self.registry,
            adapter_cache_size=adapter_cache_size,
            max_batch_rows=max_batch_rows,
            max_batch_tokens=max_batch_tokens,
        )

    def adapter(self, name: str, task: TaskSpec | None = CLASSES, config: str = "seq_bn[reduction_factor=8]") -> str:
        """Push an adapter with weights of its own and a head for its task; without a task it is a language adapter."""
        return self.registry.push(self.made(name, task, config), name)

    def made(self, name: str, task: TaskSpec | None = CLASSES, config: str = "seq_bn[reduction_factor=8]") -> Package:
        """What `adapter` pushes."""
        self.bench.add_adapter(name, config)
        package = self._packed(name, task)
        self.bench.delete_adapter(name)
        return package

    def fusion(self, name: str, members: Sequence[str], task: TaskSpec | None = CLASSES) -> str:
        """Push a fusion over packages of the registry, by their references."""
        exact = [str(self.registry.resolve(member)) for member in members]
        for member in exact:
            self.bench.install(self.registry.get(member), member, with_head=False)
        self.bench.add_adapter_fusion(f"Fuse({', '.join(exact)}, name={name})")
        reference = self.registry.push(self._packed(name, task), name)
        self.bench.delete_adapter_fusion(name)
        for member in exact:
            self.bench.delete_adapter(member)
        return reference

    def head(self, name: str, task: TaskSpec = CLASSES) -> str:
        """Push a head without an adapter."""
        return self.registry.push(self._packed(name, task), name)

    def _packed(self, name: str, task: TaskSpec | None) -> Package:
        """The part of that name as a package, with weights of its own and a head for its task."""
        if task is not None:
            spec = task_from_spec(task).head(dropout=0.1, pooling=self.bench.default_pooling)
            self.bench.add_head(name, HeadConfig(**spec.model_dump()))
        parts = self.bench.parts
        self.seed += 1
        for table in ("adapters", "fusions", "heads"):
            if name in parts.records(table):
                for module in parts.modules_of(table, name).values():
                    shake(module.parameters(), self.seed)
        package = self.bench.package(name, provenance=self._provenance(task))
        if task is not None:
            self.bench.delete_head(name)
        return package

    def _provenance(self, task: TaskSpec | None) -> Provenance:
        return Provenance(
            role="language" if task is None else "task", task=task, vocabulary=vocabulary_digest(self.tokenizer)
        )


def shake(parameters: Any, seed: int) -> None:
    """Weights of their own, large enough that each adapter and each head shows in every answer."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters:
            size = 0.6 / parameter.shape[-1] ** 0.5 if parameter.dim() > 1 else 0.02
            parameter.add_(size * torch.randn(parameter.shape, generator=draw))


def furnish(world: World) -> World:
    """One of everything: two versions and an alias, a language adapter, each kind of task, fusions, a head alone."""
    world.adapter("intent")
    world.adapter("intent")
    world.registry.alias("intent", "stable", 1)
    world.adapter("mood")
    world.adapter("hi", None, "seq_bn[reduction_factor=4]")
    world.adapter("ner", TAGS, "double_seq_bn[reduction_factor=8]")
    world.adapter("value", VALUES, "par_bn[reduction_factor=8]")
    world.adapter("nli", PAIRS)
    world.fusion("both", ["intent@1", "mood"])
    world.fusion("headless", ["mood", "hi"], None)
    world.head("probe")
    return world


def close(left: Any, right: Any, tolerance: float = 1e-5) -> bool:
    """Whether two answers are the same, their numbers within a tolerance."""
    if isinstance(left, float) and isinstance(right, float):
        return math.isclose(left, right, rel_tol=0, abs_tol=tolerance)
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(close(left[key], right[key], tolerance) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(close(a, b, tolerance) for a, b in zip(left, right, strict=True))
    return bool(left == right)


def error(outcome: dict[str, Any]) -> tuple[str, str]:
    """Code and message of a row that must have failed."""
    assert set(outcome) == {"error"}, outcome
    return outcome["error"]["code"], outcome["error"]["message"]
