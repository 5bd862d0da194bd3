"""Where an adapter gets its turn: at the norm alone where only the stream is used, else where h₀ and r are caught."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from graftwork.core.adapter import uses_of
from graftwork.core.backbone import Backbone
from graftwork.core.kinds import read_config
from graftwork.core.probe import Probe, run
from graftwork.core.site import EVERYTHING, NO_DELTA, STREAM, Delta, NormReading, Reading, Site, Uses
from graftwork.core.sublayer import Behind, NormHook, Residual
from graftwork.errors import BackboneError, RoutingError
from graftwork.model import AdapterModel
from tests import tiny, zoo
from tests.hooked import hooked
from tests.rig import randomise

POST_LN = ["bert", "roberta", "electra", "distilbert", "bart"]


def site_of(backbone: Backbone, name: str) -> Site:
    return next(site for site in backbone.sites if site.name == name)


def owners(module: nn.Module, before: bool = False) -> list[type]:
    """Whose hooks are on a module, behind its forward or before it."""
    placed = module._forward_pre_hooks if before else module._forward_hooks
    return [type(hook.__self__) for hook in placed.values()]


def made(config: str) -> Uses:
    module: Any = read_config(config).build(Site(0, "", 0, 0, "ffn", 32, 32))
    return uses_of(module)


@pytest.mark.parametrize(
    ("config", "uses"),
    [
        ("seq_bn", STREAM),
        ("seq_bn[phm_layer=True,phm_dim=2,shared_phm_rule=False]", STREAM),
        ("seq_bn[adapter_residual_before_ln=True,ln_after=True]", Uses(parts=True, after=False)),
        ("seq_bn[residual_before_ln=False]", Uses(parts=True, after=False)),
        ("seq_bn[residual_before_ln=post_add,original_ln_after=False]", Uses(parts=False, after=True)),
        ("adapter_plus", Uses(parts=False, after=True)),
        ("seq_bn[original_ln_after=False]", EVERYTHING),
        ("double_seq_bn", Uses(parts=True, after=False)),
        ("par_bn", Uses(parts=True, after=False)),
        ("loreft", Uses(parts=False, after=True)),
        ("loreft|par_bn", EVERYTHING),
    ],
)
def test_a_module_says_what_it_uses_and_gets_by_with_that(config: str, uses: Uses) -> None:
    assert made(config) == uses
    module: Any = read_config(config).build(Site(0, "", 0, 0, "ffn", 32, 32))
    torch.manual_seed(2)
    h, r, norm = torch.randn(2, 3, 32), torch.randn(2, 3, 32), nn.LayerNorm(32)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        apart = module.eval()(Reading(h, r, norm), NO_DELTA)
        seen = NormReading(h + r, norm)
        if uses.parts:
            with pytest.raises(RoutingError, match=r"seen at its norm alone.*uses = Uses\(parts=True"):
                module(seen, NO_DELTA)
            return
        at_norm = module(seen, NO_DELTA)
    for one, other in ((at_norm.before, apart.before), (at_norm.after, apart.after)):
        assert (one is None) is (other is None)
        if one is not None:
            torch.testing.assert_close(one, other)
    assert uses.after or at_norm.after is None


@pytest.mark.parametrize("family", POST_LN)
@pytest.mark.parametrize("place", ["before", "after"])
def test_the_norm_alone_gives_what_the_parts_give(family: str, place: str) -> None:
    inputs, found = tiny.inputs(family), []
    for uses in (EVERYTHING, Uses(parts=False, after=True)):
        backbone = Backbone(tiny.model(family))
        subs = [site for site in backbone.sites if site.place == "sublayer"]
        for site in subs:
            backbone.open(site, uses)

        def change(reading: Reading) -> Delta:
            return Delta(**{place: 0.3 * torch.tanh(reading.stream(NO_DELTA))})

        found.append(run(backbone, inputs, Probe(dict.fromkeys([site.index for site in subs], change))))
        zero = Probe({site.index: lambda reading: Delta(torch.zeros_like(reading.like)) for site in subs})
        assert torch.equal(run(backbone, inputs, zero), run(backbone, inputs))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found[0], run(Backbone(tiny.model(family)), inputs), atol=1e-2)


def test_hooks_are_placed_for_what_is_used_and_again_when_a_newcomer_uses_more() -> None:
    backbone = Backbone(tiny.model("bert"))
    layer: Any = backbone.trunk.encoder.layer[1].output
    site = site_of(backbone, "layer.1/ffn")
    assert not layer.LayerNorm._forward_pre_hooks
    backbone.open(site, STREAM)
    backbone.open(site, STREAM)
    assert (owners(layer.LayerNorm, before=True), owners(layer.LayerNorm)) == ([NormHook], [])
    assert not layer.dropout._forward_hooks
    assert not layer._forward_pre_hooks
    before = backbone.runtime.opened
    backbone.open(site, Uses(parts=True, after=False))
    assert (owners(layer.LayerNorm, before=True), owners(layer.dropout)) == ([NormHook], [NormHook])
    assert not layer.LayerNorm._forward_hooks
    assert owners(layer, before=True) == [Residual]
    assert backbone.runtime.opened != before
    backbone.open(site, Uses(parts=False, after=True))
    assert (owners(layer.LayerNorm), owners(layer.dropout)) == ([Behind], [NormHook])
    backbone.close()
    placed = [layer.LayerNorm._forward_hooks, layer.LayerNorm._forward_pre_hooks, layer.dropout._forward_hooks]
    assert not any([*placed, layer._forward_pre_hooks])


def test_what_an_adapter_gives_does_not_move_by_a_bit_when_another_uses_more_beside_it() -> None:
    model = AdapterModel(tiny.model("bert"))
    model.add_adapter("a", "seq_bn")
    randomise(model.parts.parameters())
    inputs = tiny.inputs("bert")
    for execution in ("reference", "auto"):
        model.execution = execution
        with torch.no_grad():
            before = model(**inputs, adapters="a", head="none")[0]
            for name, config in (("b", "double_seq_bn"), ("c", "seq_bn[original_ln_after=False]"), ("d", "par_bn")):
                model.add_adapter(name, config)
                assert torch.equal(model(**inputs, adapters="a", head="none")[0], before)
                model.delete_adapter(name)


def test_a_change_behind_the_norm_that_nothing_announced_is_refused() -> None:
    backbone = Backbone(tiny.model("bert"))
    site = site_of(backbone, "layer.0/ffn")
    backbone.open(site, Uses(parts=True, after=False))
    probe = Probe({site.index: lambda reading: Delta(after=reading.output)})
    with pytest.raises(RoutingError, match=r"site layer\.0/ffn: .* behind the norm.*uses = Uses\(after=True"):
        run(backbone, tiny.inputs("bert"), probe)


def test_a_norm_called_without_its_sum_first_is_named() -> None:
    backbone = Backbone(tiny.model("bert"))
    site = site_of(backbone, "layer.0/ffn")
    backbone.open(site, STREAM)
    norm: Any = backbone.trunk.encoder.layer[0].output.LayerNorm
    with backbone.runtime.running(Probe({})), pytest.raises(BackboneError, match=r"layer\.0/ffn: a LayerNorm was call"):
        norm(input=torch.randn(1, 2, tiny.WIDTH))


@pytest.mark.parametrize("family", ["gptj", "opt", "opt-post", "vit"])
def test_one_site_opened_alone_reads_what_it_reads_among_all(family: str) -> None:
    """What is read off a neighbour's hooks is placed along: the stream beside, how many rows, whose turn it is."""
    inputs = zoo.inputs(family, rows=3)
    for name in [site.name for site in Backbone(zoo.model(family)).sites if site.place == "sublayer"]:
        found: list[Tensor] = []
        for make in (Backbone, hooked):
            backbone = make(zoo.model(family))
            site = site_of(backbone, name)
            backbone.open(site)
            probe = Probe({site.index: lambda reading: Delta(0.5 * torch.tanh(reading.output + reading.residual))})
            found.append(run(backbone, inputs, probe))
        assert torch.equal(*found), name


def test_linears_of_joined_rows_know_their_rows_when_opened_alone() -> None:
    backbone, shapes = Backbone(zoo.model("opt")), []
    site = site_of(backbone, "layer.0/ffn.up")
    backbone.open(site)
    run(backbone, zoo.inputs("opt", rows=3, tokens=6), Probe({site.index: lambda r: shapes.append(r.output.shape)}))
    assert [tuple(shape[:2]) for shape in shapes] == [(3, 6)]


def test_what_was_compiled_is_compiled_again_when_a_site_opens() -> None:
    """torch.compile guards no hooks: every layer asks which there are, whole models and single layers alike."""
    for family, part in (("llama", "trunk"), ("bert", "layer")):
        torch._dynamo.reset()
        backbone, inputs = Backbone(tiny.model(family)), tiny.inputs(family)
        site = site_of(backbone, "layer.0/ffn")
        target = backbone.trunk if part == "trunk" else backbone.layer_of(site)
        target.compile(backend="eager", fullgraph=True)
        probe = Probe(
            {site.index: lambda reading: Delta(reading.like.flip(-1))}
        )  # no constant: a norm would not see it
        plain = run(backbone, inputs, probe)
        backbone.open(site, STREAM)
        assert not torch.allclose(run(backbone, inputs, probe), plain, atol=1e-2), (family, part)
    torch._dynamo.reset()
