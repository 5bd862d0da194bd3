"""What is folded of compositions that AdapterHub's library trained: against the executor that reads them as it does."""

import pytest
import torch

from graftwork.compose.agree import agrees
from graftwork.compose.fold import fold
from graftwork.compose.grammar import parse
from graftwork.compose.legacy import program
from graftwork.compose.parts import Parts
from graftwork.compose.tree import fusions
from graftwork.core.backbone import Backbone
from graftwork.core.fusion import FusionConfig
from graftwork.core.kinds import read_config
from graftwork.core.quirks import swapped
from graftwork.core.site import NO_DELTA, Reading
from graftwork.model import AdapterModel
from tests import tiny
from tests.rig import randomise, relative

CONFIGS = {
    "a": "seq_bn[reduction_factor=4]",
    "b": "seq_bn[reduction_factor=8,non_linearity=gelu,scaling=1.5]",
    "c": "double_seq_bn[reduction_factor=4,original_ln_after=True]",
    "h": "double_seq_bn[reduction_factor=8,original_ln_before=False,original_ln_after=True]",
    "i": "double_seq_bn[reduction_factor=4,original_ln_before=False,original_ln_after=True]",
    "gone": "seq_bn[reduction_factor=4,leave_out=[0]]",
    "plus": "adapter_plus[reduction_factor=4]",
    "p": "par_bn[reduction_factor=4]",
    "gated": "seq_bn[reduction_factor=4,use_gating=True]",
    "normed": "seq_bn[reduction_factor=4,ln_before=True]",
    "inv": "seq_bn_inv[reduction_factor=4]",
}
SAME = ("Fuse(a, b)", "Fuse(b, a, name=other)", "Fuse(h, i)", "Average(a:0.7, b:0.3)", "Average(h, i)", "Stack(a, b)",
        "Stack(a, h, b)", "Stack(c, h, gone, a)", "Stack(gone, b)", "Stack(a, Fuse(a, b))", "Stack(Fuse(a, b), h)",
        "Stack(gone, Average(a:0.7, b:0.3), Fuse(a, b))")  # fmt: skip
OTHER = ("Fuse(a, h)", "Average(a, h)", "Fuse(p, a)", "Fuse(a, plus)", "Fuse(gated, a)", "Fuse(a, gone)",
         "Average(a, gone)", "Stack(a, p)", "Stack(a, plus)", "Stack(normed, a)", "Stack(Fuse(a, b))",
         "Stack(a, Fuse(a, h))", "Stack(a, Stack(b, a))", "Stack(a, Fuse(Stack(a, b), b, name=deep))",
         "Stack(a, Average(a, gone))", "Fuse(Stack(a, b), b, name=deep)")  # fmt: skip


def parts_of(family: str, text: str, config: FusionConfig | None = None) -> tuple[Backbone, Parts]:
    backbone, parts = Backbone(tiny.model(family)), Parts()
    for name, method in CONFIGS.items():
        parts.add_adapter(name, read_config(method), backbone, "adapters-1")
    for fuse in fusions(parse(text)):
        parts.add_fusion(fuse, config or FusionConfig(), backbone, "adapters-1")
    parts.eval().requires_grad_(False)
    randomise(parts.parameters())
    return backbone, parts


def check(family: str, text: str, config: FusionConfig | None = None) -> None:
    backbone, parts = parts_of(family, text, config)
    tree = parse(text)
    assert parts.as_adapters(tree)
    nodes, seen = program(tree, len(backbone.sites), parts), 0
    generator = torch.Generator().manual_seed(1)
    for site, normed in enumerate(backbone.normed):
        if not agrees(tree, site, parts):
            continue
        h, r = torch.randn(2, 2, 5, tiny.WIDTH, generator=generator)
        norm = torch.nn.LayerNorm(tiny.WIDTH).requires_grad_(False)
        randomise(norm.parameters(), site)
        reading = Reading(h, r, norm if normed else None)
        folded, node = fold(tree, site, parts, normed=normed), nodes[site]
        assert folded is not None
        assert node is not None
        assert folded.plan.folded == (text,)
        found, expected = folded.node(reading, NO_DELTA), node(reading, NO_DELTA)
        assert found.after is None
        assert expected.after is None
        assert found.before is not None
        assert expected.before is not None
        assert relative(found.before, expected.before) < 1e-5
        seen += 1
    assert seen == sum(node is not None for node in nodes) > 0


@pytest.mark.parametrize("text", SAME)
@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2"])
def test_what_agrees_folds_to_what_that_library_computes(family: str, text: str) -> None:
    check(family, text)


@pytest.mark.parametrize("config", [FusionConfig(query_before_ln=True), FusionConfig(value=False, query=False)])
def test_fusions_with_other_choices_agree_too(config: FusionConfig) -> None:
    check("bert", "Fuse(a, b)", config)


@pytest.mark.parametrize("text", OTHER)
def test_what_may_differ_does_not_agree(text: str) -> None:
    backbone, parts = parts_of("bert", text)
    layers = {site.layer for site in backbone.sites if agrees(parse(text), site.index, parts)}
    assert layers == ({1, 2} if "gone" in text else set())


def test_embeddings_and_sites_that_are_read_otherwise_do_not_agree() -> None:
    backbone, parts = parts_of("bert", "Stack(inv, a)")
    assert {site.kind for site in backbone.sites if agrees(parse("Stack(inv, a)"), site.index, parts)} == {"ffn"}
    for text in ("Stack(c, h)", "c"):
        assert any(agrees(parse(text), site.index, parts) for site in backbone.sites)
        parts._views = {site.index: swapped for site in backbone.sites}  # as ALBERT's attention is read
        assert not any(agrees(parse(text), site.index, parts) for site in backbone.sites)
        parts._views = {}


@pytest.mark.parametrize("text", ["Fuse(a, b)", "Stack(a, b)", "Stack(a, p)", "Fuse(p, a)", "Stack(a, Fuse(a, b))"])
def test_a_whole_model_runs_them_folded_where_they_agree(text: str) -> None:
    model = AdapterModel(tiny.model("bert"))
    for name in ("a", "b", "p"):
        model.add_adapter(name, CONFIGS[name])
        model.parts.semantics["adapters", name] = "adapters-1"
    for fuse in fusions(parse(text)):
        model.add_adapter_fusion(fuse)
    randomise(model.parts.parameters())
    inputs = tiny.inputs("bert")
    with torch.no_grad():
        model.execution = "reference"
        expected = model(**inputs, adapters=text).last_hidden_state
        model.execution = "folded"
        found = model(**inputs, adapters=text).last_hidden_state
        routed = model._planner.plan(text, "none", None, 2).routed
    assert relative(found, expected) < 1e-5
    assert routed is not None
    assert any(made.folds for made in routed.made) == ("p" not in text)
