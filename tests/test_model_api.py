"""Whatever is called, the frozen base keeps its weights, its keys, its modules and its configuration."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM

from graftwork.compose.tree import Fuse
from graftwork.core.heads import HeadConfig
from graftwork.model import AdapterModel
from tests import tiny
from tests.adapted import same, shaken, snapshot

GIVEN = tiny.inputs("llama")
LABELS = torch.tensor([0, 1])


def _loaded(model: AdapterModel, folder: Path) -> None:
    for name in ("a", "b", "ab", "h"):
        model.save_adapter(folder / name, name)
    model.load_adapter(folder / "a", load_as="copy")
    model.load_adapter_fusion(folder / "ab", load_as="copy")
    model.load_head(folder / "h", load_as="copied")


def _backward(model: AdapterModel, _: Path) -> None:
    model.train_adapter("Stack(a, b)")
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    model(**GIVEN, labels=LABELS, head="a").loss.backward()
    optimiser.step()


def _merged(model: AdapterModel, _: Path) -> None:
    model.add_adapter("l", "lora[r=2]")
    shaken(model.parts, seed=4)
    model.merge_adapter("l")
    model(**GIVEN, adapters="l", head="a")
    model.reset_adapter()


def _compiled(model: AdapterModel, _: Path) -> None:
    model.execution = "banked"
    model.compile(backend="eager")
    with torch.no_grad():
        model.eval()(**GIVEN, adapters=["a", "b"], head="none")


class _Words:
    def get_vocab(self) -> dict[str, int]:
        return {f"word{number}": number for number in range(tiny.VOCABULARY + 5)}


def _spoken(model: AdapterModel) -> None:
    model.add_embeddings("new", _Words())
    model(**GIVEN, head="a")
    model.generate(GIVEN["input_ids"], adapters="a", max_new_tokens=2)


def _reread(model: AdapterModel, folder: Path) -> None:
    _spoken(model)
    model.save_embeddings(folder / "e", "new")
    model.load_embeddings(folder / "e", "again")
    model(**GIVEN, head="a")


def _folded(model: AdapterModel, _: Path) -> None:
    model.execution = "folded"
    with torch.no_grad():
        for tree in ("a", "Fuse(a, b, name=ab)", "Average(a, b)"):
            model.eval()(**GIVEN, adapters=tree, head="a")


# every public name of AdapterModel that torch's Module does not have -> calls of it
CALLS: dict[str, Callable[[AdapterModel, Path], object]] = {
    "activation_checkpointing_enable": lambda m, _: m.activation_checkpointing_enable({"use_reentrant": False}),
    "gradient_checkpointing_enable": lambda m, _: m.gradient_checkpointing_enable(),
    "active_adapters": lambda m, _: setattr(m, "active_adapters", "Stack(a, b)"),
    "active_embeddings": lambda m, _: m.active_embeddings,
    "active_head": lambda m, _: setattr(m, "active_head", "h"),
    "adapter_summary": lambda m, _: str(m.adapter_summary()),
    "adapter_to": lambda m, _: m.adapter_to("a", "cpu", torch.float64),
    "add_adapter": lambda m, _: (m.add_adapter("c", "double_seq_bn", set_active=True), m.add_adapter("x", "par_bn")),
    "add_adapter_fusion": lambda m, _: m.add_adapter_fusion("b,a", "static", set_active=True),
    "add_classification_head": lambda m, _: m.add_classification_head("c", id2label={0: "x", 1: "y"}),
    "add_causal_lm_head": lambda m, _: (m.add_causal_lm_head("c"), m(**GIVEN, head="c")),
    "add_custom_head": lambda m, _: (
        m.add_custom_head(nn.Identity(), "c"),
        m.add_custom_head(nn.Identity(), "c", True),
    ),
    "add_dependency_parsing_head": lambda m, _: m.add_dependency_parsing_head("c", 5),
    "add_embedding_head": lambda m, _: (m.add_embedding_head("c"), m(**GIVEN, head="c")),
    "add_embeddings": lambda m, _: (_spoken(m), m.train_adapter("a", train_embeddings=True), m(**GIVEN, head="a")),
    "add_head": lambda m, _: m.add_head("c", HeadConfig(kind="regression", num_outputs=1)),
    "add_image_classification_head": lambda m, _: m.add_image_classification_head("c", 3),
    "add_masked_lm_head": lambda m, _: (m.add_masked_lm_head("c", tied=True), m(**GIVEN, head="c")),
    "add_multiple_choice_head": lambda m, _: m.add_multiple_choice_head("c", 3),
    "add_qa_head": lambda m, _: (m.add_qa_head("c"), m(**GIVEN, head="c")),
    "add_seq2seq_lm_head": lambda m, _: m.add_seq2seq_lm_head("c"),
    "add_regression_head": lambda m, _: m.add_regression_head("c"),
    "add_tagging_head": lambda m, _: m.add_tagging_head("c", 4),
    "average_adapter": lambda m, _: (m.average_adapter("c", {"a": 0.3, "b": 0.7}), m(**GIVEN, adapters="c", head="a")),
    "average_head": lambda m, _: m.average_head("c", ["a", "b"]),
    "config": lambda m, _: (m.set_active_adapters("a"), setattr(m.config, "id2label", {0: "mine"})),
    "default_dropout": lambda m, _: m.default_dropout,
    "default_pooling": lambda m, _: m.default_pooling,
    "delete_adapter": lambda m, _: (m.delete_adapter_fusion("ab"), m.delete_adapter("b")),
    "delete_adapter_fusion": lambda m, _: m.delete_adapter_fusion("ab"),
    "delete_embeddings": lambda m, _: (_spoken(m), m.delete_embeddings("new")),
    "delete_head": lambda m, _: m.delete_head("a"),
    "device": lambda m, _: m.device,
    "dtype": lambda m, _: m.dtype,
    "eject_prefix_tuning": lambda m, _: (
        m.add_adapter("p", "prefix_tuning[prefix_length=2,bottleneck_size=4]"),
        m.eject_prefix_tuning("p"),
    ),
    "compile": _compiled,
    "execution": _folded,
    "forward": lambda m, _: [
        m(**GIVEN, adapters=tree, head=head, labels=LABELS if head != "none" else None)
        for tree in ("a", "Fuse(a, b, name=ab)", ["Stack(b, a)", None], "Parallel(a, b)", "Split(a:3, b:4)")
        for head in ("a", "none")
    ],
    "fusion_attention": lambda m, _: m.eval().fusion_attention("ab", [GIVEN]),
    "generate": lambda m, _: m.generate(GIVEN["input_ids"], adapters=["a", "b"], max_new_tokens=2, num_beams=2),
    "install": lambda m, _: m.install(m.package("a"), "c"),
    "load_adapter": _loaded,
    "load_adapter_fusion": _loaded,
    "load_embeddings": _reread,
    "load_head": _loaded,
    "load_state_dict": lambda m, _: m.load_state_dict({key: value + 1 for key, value in m.state_dict().items()}),
    "merge_adapter": _merged,
    "reset_adapter": _merged,
    "package": lambda m, _: (m.package("a"), m.package("ab"), m.package("h")),
    "plan": lambda m, _: m.plan("Parallel(a, b)", "a", 2),
    "prune_fusion": lambda m, _: (m.eval().prune_fusion(m.fusion_attention("ab", [GIVEN]), 1), m.train()),
    "register_custom_head": lambda m, _: (
        m.register_custom_head("plain", lambda width, outputs: nn.Linear(width, outputs)),
        m.add_custom_head("plain", "c", outputs=3),
        m.package("c"),
    ),
    "reserve": lambda m, _: m.reserve(20),
    "save_adapter": lambda m, folder: m.save_adapter(folder / "a", "a"),
    "save_adapter_fusion": lambda m, folder: m.save_adapter_fusion(folder / "ab", "ab"),
    "save_all_adapters": lambda m, folder: m.save_all_adapters(folder),
    "save_embeddings": lambda m, folder: m.save_embeddings(folder / "e", "default"),
    "save_head": lambda m, folder: m.save_head(folder / "h", "h"),
    "set_active_adapters": lambda m, _: m.set_active_adapters(Fuse("a", "b", name="ab")),
    "set_active_embeddings": lambda m, _: (_spoken(m), m.set_active_embeddings("default"), m(**GIVEN)),
    "state_dict": lambda m, _: [value.add_(1) for value in m.state_dict().values()],
    "train_adapter": _backward,
    "train_adapter_fusion": lambda m, _: (
        m.train_adapter_fusion(Fuse("a", "b", name="ab"), unfreeze_adapters=True),
        m(**GIVEN, labels=LABELS, head="a").loss.backward(),
    ),
}


def test_every_public_name_is_called_here() -> None:
    public = {name for name in vars(AdapterModel) if not name.startswith("_")} - {"accepts_loss_kwargs"}
    assert public == set(CALLS)


@pytest.mark.parametrize("called", CALLS)
def test_the_base_is_left_as_it_was(called: str, tmp_path: Path) -> None:
    base = LlamaForCausalLM(tiny.model("llama").config).eval()
    weights, modules, config = snapshot(base), dict(base.named_modules()), base.config.to_dict()
    model = AdapterModel(base)
    for name in ("a", "b"):
        model.add_adapter(name)
        model.add_classification_head(name)
    model.add_adapter_fusion(Fuse("a", "b", name="ab"))
    model.add_regression_head("h")
    shaken(model.parts, seed=3)
    CALLS[called](model, tmp_path)
    assert same(weights, snapshot(base))
    assert dict(base.named_modules()) == modules
    assert base.config.to_dict() == config
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in base.parameters())
    model.set_active_adapters(None)
    model.active_head = None
    model.set_active_embeddings("default")
    model.eval()
    fresh = LlamaForCausalLM(tiny.model("llama").config).eval()
    fresh.load_state_dict(weights)
    with torch.no_grad():
        assert torch.equal(model(**GIVEN, head="none").logits, fresh(**GIVEN).logits)
        assert torch.equal(base(**GIVEN).logits, fresh(**GIVEN).logits)


def test_this_check_can_fail() -> None:
    base: nn.Module = tiny.model("bert")
    weights = snapshot(base)
    with torch.no_grad():
        next(base.parameters()).view(-1)[0].add_(1e-3)
    assert not same(weights, snapshot(base))
