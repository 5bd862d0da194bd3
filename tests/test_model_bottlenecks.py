"""The bottleneck's relatives in whole models, against copies of them whose own modules were replaced by hand."""

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertForMaskedLM, LlamaForCausalLM

from graftwork.compose.parts import Parts
from graftwork.compose.tree import Fuse
from graftwork.core.backbone import Backbone, load_skeleton
from graftwork.core.fusion import FUSIONS
from graftwork.core.kinds import read_config
from graftwork.errors import AdapterError, CompositionError
from graftwork.model import AdapterModel
from tests import tiny
from tests.adapted import last, shaken

INVERTIBLE_ONLY = "seq_bn_{}[output_adapter=False]"
Map = Callable[[Tensor], Tensor]


class Replaced(nn.Module):
    """A module with something done to what it reads, and to what it gives in view of what it read."""

    def __init__(self, inner: nn.Module, before: Map = lambda x: x, after: Any = lambda x, y: y) -> None:
        super().__init__()
        self.inner, self.before, self.after = inner, before, after

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        x = self.before(x) if x.is_floating_point() else x
        return self.after(x, self.inner(x, *args, **kwargs))


def replace(model: nn.Module, path: str, **how: Any) -> None:
    model.set_submodule(path, Replaced(model.get_submodule(path), **how))


def adapted(family: str, config: str, base: Any = None) -> tuple[AdapterModel, Any, dict[str, Any]]:
    """A model with the adapter `a`, random and in float64; an untouched copy of its base; a's modules by site."""
    base = tiny.model(family) if base is None else base
    clean = copy.deepcopy(base).double()
    model = AdapterModel(base.double())
    model.add_adapter("a", config)
    shaken(model.parts.double(), seed=3)
    return model.eval(), clean, model.parts.modules_of("adapters", "a")


def bare(module: Any, x: Tensor) -> Tensor:
    """up(f(down(x)))."""
    return module.up(module.activation(module.down(x)))  # type: ignore[no-any-return]


def agree(model: AdapterModel, changed: Any, given: dict[str, Tensor], setup: Any = "a") -> None:
    with torch.no_grad():
        found, expected = last(model(**given, adapters=setup)), last(changed(**given))
        plain = last(model(**given, adapters=None))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert float((found - plain).norm() / plain.norm()) > 0.01


# -- LLM-Adapters --

LINEARS = {
    "llama": ("layers.{}.mlp.up_proj", "layers.{}.mlp.gate_proj", "layers.{}.mlp.down_proj"),
    "bert": ("encoder.layer.{}.intermediate.dense", None, "encoder.layer.{}.output.dense"),
}


@pytest.mark.parametrize("family", LINEARS)
def test_llm_adapters_are_copies_with_changed_linears(family: str) -> None:
    up, gate, down = LINEARS[family]
    for config, kinds in {
        "llm_series": {"ffn.up.input": up, "ffn.gate.input": gate},
        "llm_series_down": {"ffn.down": down},
        "llm_parallel": {"ffn.up": up, "ffn.down": down},
    }.items():
        model, changed, modules = adapted(family, f"{config}[bottleneck_size=5]")
        wanted = {f"layer.{n}/{kind}": path.format(n) for n in range(3) for kind, path in kinds.items() if path}
        assert {*modules} == {*wanted}
        for site, path in wanted.items():
            module = modules[site]
            if config == "llm_series":
                replace(changed, path, before=lambda x, m=module: x + bare(m, x))
            elif config == "llm_series_down":
                replace(changed, path, after=lambda x, y, m=module: y + bare(m, y))
            else:
                replace(changed, path, after=lambda x, y, m=module: y + bare(m, x))
        agree(model, changed, tiny.inputs(family))


# -- adapter-bert --


def test_adapter_bert_is_a_copy_with_other_norms() -> None:
    model, changed, modules = adapted("bert", "adapter_bert[bottleneck_size=6]")
    assert {*modules} == {"embed", *(f"layer.{n}/{kind}" for n in range(3) for kind in ("attn", "ffn"))}
    changed.embeddings.LayerNorm.load_state_dict(modules["embed"].state_dict())
    for n in range(3):
        for kind, path in (("attn", "attention.output"), ("ffn", "output")):
            module = modules[f"layer.{n}/{kind}"]
            replace(changed, f"encoder.layer.{n}.{path}.dense", after=lambda x, y, m=module: y + bare(m, y))
            changed.get_submodule(f"encoder.layer.{n}.{path}.LayerNorm").load_state_dict(module.norm.state_dict())
    agree(model, changed, tiny.inputs("bert"))


def test_adapter_bert_at_birth_is_the_base_to_the_last_bit() -> None:
    model = AdapterModel(tiny.model("bert")).eval()
    model.add_adapter("a", "adapter_bert")
    for name, module in model.parts.modules_of("adapters", "a").items():
        if name != "embed":
            nn.init.zeros_(module.up.weight)
    given = tiny.inputs("bert")
    assert torch.equal(last(model(**given, adapters="a")), last(model(**given, adapters=None)))


def test_adapter_bert_on_a_pre_norm_model_is_refused() -> None:
    for family in ("llama", "t5"):
        model = AdapterModel(tiny.model(family))
        with pytest.raises(AdapterError, match=r"train_norms at .*layer.0/attn: the model has no norm after"):
            model.add_adapter("a", "adapter_bert")
        assert not model.parts.adapter_configs


# -- invertible adapters --


@pytest.mark.parametrize("kind", ["inv", "glow"])
@pytest.mark.parametrize("family", ["bert", "llama", "t5"])
def test_an_invertible_adapter_is_a_copy_with_other_embeddings(family: str, kind: str) -> None:
    model, changed, modules = adapted(family, INVERTIBLE_ONLY.format(kind))
    assert [*modules] == ["encoder.embed" if family == "t5" else "embed"]
    (module,) = modules.values()
    given = tiny.inputs(family)
    if family == "bert":
        replace(changed, "embeddings", after=lambda x, y: y + module.moved(y))
        changed.embeddings.forward = lambda **kw: (lambda y: y + module.moved(y))(changed.embeddings.inner(**kw))
        agree(model, changed, given)
        return
    embeddings = changed.get_input_embeddings()(given["input_ids"])
    embedded = {key: value for key, value in given.items() if key != "input_ids"}
    with torch.no_grad():
        expected = last(changed(**embedded, inputs_embeds=embeddings + module.moved(embeddings)))
        torch.testing.assert_close(last(model(**given, adapters="a")), expected, rtol=1e-9, atol=1e-9)


def test_glow_at_birth_is_the_base_to_the_last_bit() -> None:
    for family in ("bert", "llama", "t5"):
        model = AdapterModel(tiny.model(family)).eval()
        model.add_adapter("a", INVERTIBLE_ONLY.format("glow"))
        given = tiny.inputs(family)
        assert torch.equal(last(model(**given, adapters="a")), last(model(**given, adapters=None)))


def language_model(family: str) -> Any:
    maker, kind = {"bert": (BertForMaskedLM, "bert"), "llama": (LlamaForCausalLM, "llama")}[family]
    _, config, options = tiny.MAKERS[kind]
    torch.manual_seed(0)
    made = maker(config(**options)).eval()
    shaken(made, seed=9)
    return made


@pytest.mark.parametrize("kind", ["inv", "glow"])
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_mad_x_undoes_the_language_before_the_vocabulary(family: str, kind: str) -> None:
    """Stack(language, task): the vocabulary reads what it would without the map, for rows with a language adapter."""
    model, clean, modules = adapted(family, f"seq_bn_{kind}[reduction_factor=4]", language_model(family))
    model.add_adapter("task", "seq_bn[reduction_factor=2]")
    model.parts.double().eval()
    given, seen = tiny.inputs(family), []
    vocabulary = model.backbone.model.get_output_embeddings()
    handle = vocabulary.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        logits = model(**given, adapters=["Stack(a, task)", None]).logits
        handle.remove()
        before = model.backbone.trunk
        with model.backbone.runtime.running(model._planner.plan("Stack(a, task)", "none", None, 2).route):
            hidden = before(**given)[0]
        transform = clean.cls.predictions.transform if family == "bert" else nn.Identity()
        undone = modules["embed"].inverse(transform(hidden))
        decoder = clean.cls.predictions.decoder if family == "bert" else clean.lm_head
        torch.testing.assert_close(logits[:1], decoder(undone)[:1], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(logits[1:], clean(**given).logits[1:], rtol=1e-9, atol=1e-9)
        assert not torch.allclose(logits[:1], decoder(transform(hidden))[:1], atol=1e-3)
    assert len(seen) == 1


def test_two_languages_in_a_stack_are_undone_from_the_last() -> None:
    model, clean, modules = adapted("llama", INVERTIBLE_ONLY.format("inv"), language_model("llama"))
    model.add_adapter("b", INVERTIBLE_ONLY.format("glow"))
    (b,) = model.parts.modules_of("adapters", "b").values()
    shaken(b.double(), seed=12)
    a, given = modules["embed"], tiny.inputs("llama")
    e = clean.get_input_embeddings()(given["input_ids"])
    with torch.no_grad():
        e = e + a.moved(e)
        hidden = clean.model(inputs_embeds=e + b.moved(e))[0]
        expected = clean.lm_head(a.inverse(b.inverse(hidden)))
        torch.testing.assert_close(model(**given, adapters="Stack(a, b)").logits, expected, rtol=1e-9, atol=1e-9)


def test_a_fusion_of_two_languages_mixes_what_both_make_of_the_embeddings_and_has_no_inverse() -> None:
    """Σ αᵢ uᵢ, in AdapterHub's open issue 366: a fusion without projections attends by e·uᵢ."""
    model, clean, modules = adapted("llama", INVERTIBLE_ONLY.format("inv"), language_model("llama"))
    model.add_adapter("b", INVERTIBLE_ONLY.format("glow"))
    (b,) = model.parts.modules_of("adapters", "b").values()
    shaken(b.double(), seed=12)
    config = dataclasses.replace(FUSIONS["static"], query=False, key=False)
    model.add_adapter_fusion(Fuse("a", "b"), config)
    a, given = modules["embed"], tiny.inputs("llama")
    model.eval()
    with pytest.raises(CompositionError, match="a mixture of invertible adapters has no exact inverse"):
        model(**given, adapters="Fuse(a, b)")
    with torch.no_grad():
        e = clean.get_input_embeddings()(given["input_ids"])
        said = torch.stack([a.moved(e), b.moved(e)], dim=-2)
        mixed = ((e[..., None, :] * said).sum(-1).softmax(-1)[..., None] * said).sum(-2)
        plan = model._planner.plan("Fuse(a, b)", "none", None, 2)
        with model.backbone.runtime.running(plan.route):
            found = model.backbone.trunk(**given)[0]
        torch.testing.assert_close(found, clean.model(inputs_embeds=e + mixed)[0], rtol=1e-9, atol=1e-9)


# -- all of them: files, training, compositions --

RELATIVES = {
    "bert": [
        *("seq_bn_inv", "double_seq_bn_glow", "compacter[reduction_factor=4]", "adapter_bert", "bapna_firat"),
        *("compacter++[reduction_factor=4,shared_W_phm=True,factorized_phm_rule=True]", "adapter_plus", "llm_series"),
    ],
    "llama": ["seq_bn_glow", "compacter++[reduction_factor=4]", "adapter_plus", "llm_series", "llm_parallel"],
    "t5": ["double_seq_bn_inv", "compacter[reduction_factor=4,cross_adapter=True]", "bapna_firat", "llm_series_down"],
}
CASES = [(family, config) for family, configs in RELATIVES.items() for config in configs]


@pytest.mark.parametrize(("family", "config"), CASES)
def test_what_is_saved_comes_back(family: str, config: str, tmp_path: Path) -> None:
    model = AdapterModel(tiny.model(family))
    model.add_adapter("a", config)
    shaken(model.parts, seed=3)
    digest = model.save_adapter(tmp_path / "a", "a")
    other, given = AdapterModel(tiny.model(family)), tiny.inputs(family)
    other.load_adapter(tmp_path / "a")
    assert other.package("a").digest == digest
    assert other.parts.adapter_configs == model.parts.adapter_configs
    with torch.no_grad():  # what is loaded is frozen and would run folded, the other one, which may learn, would not
        found, expected = (last(one.eval()(**given, adapters="a")) for one in (other, model))
        assert torch.equal(found, expected)
        assert not torch.equal(found, last(other(**given, adapters=None)))


@pytest.mark.parametrize(("family", "config"), CASES)
def test_every_parameter_learns_and_the_base_does_not(family: str, config: str) -> None:
    model = AdapterModel(tiny.model(family))
    model.add_adapter("a", config)
    shaken(model.parts, seed=3)
    model.train_adapter("a")
    last(model(**tiny.inputs(family))).square().sum().backward()
    named = {f"{site}/{name}": p for site, module in model.parts.modules_of("adapters", "a").items()
             for name, p in module.named_parameters()}  # fmt: skip
    assert [name for name, parameter in named.items() if parameter.grad is None] == []
    assert not any(parameter.requires_grad for parameter in model.backbone.model.parameters())


@pytest.mark.parametrize(("family", "config"), CASES)
def test_they_compose_with_others_and_with_rows_that_have_none(family: str, config: str) -> None:
    model = AdapterModel(tiny.model(family))
    model.add_adapter("a", config)
    model.add_adapter("s", "seq_bn[reduction_factor=4]")
    shaken(model.parts, seed=3)
    model.eval()
    given = tiny.inputs(family)
    with torch.no_grad():
        rows = last(model(**given, adapters=["Stack(a, s)", None]))
        torch.testing.assert_close(rows[:1], last(model(**given, adapters="Stack(a, s)"))[:1])
        torch.testing.assert_close(rows[1:], last(model(**given, adapters=None))[1:])
        alone = last(model(**given, adapters="a"))
        torch.testing.assert_close(last(model(**given, adapters="Average(a, a)")), alone, rtol=1e-4, atol=1e-4)
        model.execution = "folded"
        torch.testing.assert_close(last(model(**given, adapters="Stack(a, s)"))[:1], rows[:1], rtol=1e-4, atol=1e-4)


COUNTS = {
    "compacter": 24 * (2 * (4 * 192 + 4 * 6) + 24 + 768) + 4**3,  # factors of rank 1, biases, the one rule
    "compacter++": 12 * (2 * (4 * 192 + 4 * 6) + 24 + 768) + 4**3,
    "adapter_plus": 12 * (2 * 768 * 8 + 8 + 768 + 768),  # and a scale for each channel
    "bapna_firat": 12 * (2 * 768 * 48 + 48 + 768 + 2 * 768),
    "adapter_bert": 24 * (2 * 768 * 64 + 64 + 768) + 25 * 2 * 768,
    "seq_bn_inv": 894_528 + 2 * (2 * 384 * 192 + 192 + 384),
    "seq_bn_glow": 894_528 + 2 * (384 * 192 + 192 + 192 * 768 + 768) + 768**2 + 2 * 768,
    "llm_series_down": 12 * 2 * 768 * 256,
    "llm_parallel": 12 * 2 * 256 * (768 + 3072),
}


@pytest.mark.parametrize("config", COUNTS)
def test_counts_on_bert_base(config: str) -> None:
    parts = Parts()
    with torch.device("meta"):
        parts.add_adapter("a", read_config(config), Backbone(load_skeleton("bert-base-uncased")))
    assert parts.count("adapters", "a") == COUNTS[config]


@pytest.mark.parametrize("flags", ["", ",shared_phm_rule=False", ",factorized_phm_rule=True"])
def test_a_rule_that_shall_not_learn_is_not_trained_nor_counted(flags: str) -> None:
    model = AdapterModel(tiny.model("bert"))
    model.add_adapter("a", f"compacter[reduction_factor=8,phm_dim=2,learn_phm=False{flags}]")
    model.train_adapter("a")
    rules = {name for name, _ in model.parts.named_parameters() if "rule" in name}
    trained = {name for name, parameter in model.parts.named_parameters() if parameter.requires_grad}
    assert rules
    assert trained == {name for name, _ in model.parts.named_parameters()} - rules
    model(**tiny.inputs("bert"), head="none")[0].sum().backward()
    assert all(model.parts.get_parameter(name).grad is not None for name in trained)
