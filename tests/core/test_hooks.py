"""Hooks and the runtime: a route lives for one forward, in one thread, of one model, and leaves nothing behind."""

import copy
import pickle
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from graftwork.core.backbone import Backbone
from graftwork.core.families import OF_MODEL_TYPE, Family, LayerStack, Sublayer
from graftwork.core.hooks import Runtime
from graftwork.core.site import Delta, Reading
from graftwork.errors import BackboneError, RoutingError
from tests import tiny, zoo
from tests.hooked import hooked


class Push:
    """A route that adds a constant at every site, before the residual add or after the norm."""

    def __init__(self, size: float, after: bool = False) -> None:
        self.size, self.after = size, after

    def delta(self, site: int, reading: Reading) -> Delta:
        change = torch.full_like(reading.output, self.size)
        return Delta(after=change) if self.after and reading.norm is not None else Delta(before=change)


class Fail:
    """A route that raises in the middle of the forward, with a residual caught and a change pending."""

    def delta(self, site: int, reading: Reading) -> Delta:
        if site == 3:
            raise ZeroDivisionError("in mid-forward")
        return Delta(after=torch.ones_like(reading.output))


class Calls:
    """A route that calls something at the first site."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.call = call

    def delta(self, site: int, reading: Reading) -> None:
        if site == 0:
            self.call()


def run(backbone: Backbone, route: Any, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad(), backbone.runtime.running(route):
        output: Tensor = backbone.trunk(**inputs)[0]
    return output


def at_rest(runtime: Runtime) -> bool:
    return runtime.route is None and not runtime.residuals and not runtime.pending


@pytest.mark.parametrize("family", tiny.MAKERS)
def test_without_a_route_the_model_is_the_base(family: str) -> None:
    inputs = tiny.inputs(family)
    with torch.no_grad():
        expected = tiny.model(family)(**inputs)[0]
        backbone = hooked(tiny.model(family))
        assert torch.equal(backbone.model(**inputs)[0], expected)
        assert torch.equal(run(backbone, None, inputs), expected)
        assert not torch.allclose(run(backbone, Push(0.5, after=True), inputs), expected)
        assert torch.equal(backbone.model(**inputs)[0], expected)


@pytest.mark.parametrize("after", [False, True])
def test_a_change_is_written_before_the_add_or_after_the_norm(after: bool) -> None:
    backbone = hooked(tiny.model("bert"))
    backbone.trunk.encoder.layer = backbone.trunk.encoder.layer[:1]
    layer: Any = backbone.trunk.encoder.layer[0]
    inputs = tiny.inputs("bert")
    with torch.no_grad():
        x = backbone.trunk.embeddings(inputs["input_ids"])
        h = layer.attention.output.dense(layer.attention.self(x)[0])
        norm = layer.attention.output.LayerNorm
        x = norm(h + x) + 0.5 if after else norm(h + 0.5 + x)
        h = layer.output.dense(layer.intermediate(x))
        x = layer.output.LayerNorm(h + x) + 0.5 if after else layer.output.LayerNorm(h + 0.5 + x)
    torch.testing.assert_close(run(backbone, Push(0.5, after), inputs), x)


def test_a_change_of_zero_is_the_base_to_the_last_bit() -> None:
    for family in tiny.MAKERS:
        backbone, inputs = hooked(tiny.model(family)), tiny.inputs(family)
        plain = run(backbone, None, inputs)
        assert torch.equal(run(backbone, Push(0.0), inputs), plain), family
        assert torch.equal(run(backbone, Push(0.0, after=True), inputs), plain), family


def test_an_exception_leaves_nothing_behind() -> None:
    backbone, inputs = hooked(tiny.model("bert")), tiny.inputs("bert")
    plain = run(backbone, None, inputs)
    with pytest.raises(ZeroDivisionError):
        run(backbone, Fail(), inputs)
    assert at_rest(backbone.runtime)
    assert torch.equal(run(backbone, None, inputs), plain)
    with torch.no_grad():
        assert torch.equal(backbone.model(**inputs)[0], plain)


def test_a_forward_cannot_be_entered_again_but_can_be_called_again() -> None:
    backbone, inputs = hooked(tiny.model("llama")), tiny.inputs("llama")
    with pytest.raises(RoutingError, match=r"already running a forward in this thread.*after the outer forward"):
        run(backbone, Calls(lambda: run(backbone, Push(1.0), inputs)), inputs)
    assert at_rest(backbone.runtime)
    other = hooked(tiny.model("llama", seed=1))
    run(backbone, Calls(lambda: run(other, Push(1.0), inputs)), inputs)  # two models do not disturb each other
    assert at_rest(backbone.runtime)
    assert at_rest(other.runtime)


def test_threads_with_different_routes_get_their_own_answers() -> None:
    backbone, inputs = hooked(tiny.model("bert")), tiny.inputs("bert")
    routes = [None, Push(0.5), Push(-0.5), Push(1.0, after=True)]
    expected = [run(backbone, route, inputs) for route in routes]
    wrong: list[int] = []

    def worker(number: int) -> None:
        for _ in range(15):
            if not torch.equal(run(backbone, routes[number], inputs), expected[number]):
                wrong.append(number)

    threads = [threading.Thread(target=worker, args=(number,)) for number in range(len(routes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert wrong == []
    assert not any(thread.is_alive() for thread in threads)


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
@pytest.mark.parametrize("family", ["bert", "llama", "t5"])
def test_a_copy_has_hooks_and_a_runtime_of_its_own(family: str, copier: Callable[[Any], Any]) -> None:
    original, inputs = hooked(tiny.model(family)), tiny.inputs(family)
    plain, pushed = run(original, None, inputs), run(original, Push(0.5), inputs)
    seen: list[Tensor] = []
    twin: Backbone = copier(original)
    assert twin.runtime is not original.runtime
    with torch.no_grad():
        for parameter in original.trunk.parameters():
            parameter.zero_()
    assert torch.equal(run(twin, Push(0.5), inputs), pushed)
    run(original, Calls(lambda: seen.append(run(twin, None, inputs))), inputs)
    assert torch.equal(seen[0], plain)  # a route of the original does not reach the copy


def test_a_copy_made_in_mid_forward_starts_at_rest() -> None:
    backbone, inputs = hooked(tiny.model("bert")), tiny.inputs("bert")
    copies: list[Runtime] = []
    run(backbone, Calls(lambda: copies.append(copy.deepcopy(backbone.runtime))), inputs)
    assert at_rest(copies[0])
    with copies[0].running(Push(1.0)):
        assert copies[0].route is not None


# -- activation checkpointing --


class Learned:
    """A route with one trained vector per site."""

    def __init__(self, sites: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.vectors = [torch.randn(tiny.WIDTH, generator=generator).requires_grad_() for _ in range(sites)]

    def delta(self, site: int, reading: Reading) -> Delta:
        change = torch.tanh(reading.hidden(Delta()) * self.vectors[site])
        after = reading.norm is not None and site % 2 == 0
        return Delta(after=change) if after else Delta(before=change)


def gradients(model: PreTrainedModel, between: Any, recompute: bool) -> list[Tensor]:
    backbone, inputs = hooked(model), tiny.inputs(model.config.model_type)
    backbone.model.train()
    for module in backbone.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    if recompute:
        backbone.model.gradient_checkpointing_enable(
            {"use_reentrant": False, "context_fn": backbone.runtime.checkpoint_contexts}
        )
    route = Learned(len(backbone.sites), seed=3)
    with backbone.runtime.running(route):
        output = backbone.trunk(**inputs)[0]
    if between is not None:
        run(backbone, between, inputs)
    output.square().sum().backward()
    assert at_rest(backbone.runtime)
    return [vector.grad for vector in route.vectors if vector.grad is not None]


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable.*")
@pytest.mark.parametrize("family", ["bert", "llama", "t5"])
def test_recomputed_layers_run_under_the_route_of_their_forward(family: str) -> None:
    plain = gradients(tiny.model(family), between=None, recompute=False)
    assert len(plain) == [site.place for site in hooked(tiny.model(family)).sites].count("sublayer")
    for between in (None, Push(3.0)):
        found = gradients(tiny.model(family), between, recompute=True)
        for one, other in zip(found, plain, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_backward_inside_another_forward_keeps_both_routes() -> None:
    runtime, seen = Runtime(), []

    def layer(x: Tensor) -> Tensor:
        seen.append(runtime.route)
        return x * x

    first, second = Push(1.0), Push(2.0)
    x = torch.ones(3, requires_grad=True)
    with runtime.running(first):
        y = checkpoint(layer, x, use_reentrant=False, context_fn=runtime.checkpoint_contexts)
    with runtime.running(second):
        runtime.residuals[0] = x
        y.sum().backward()
        assert runtime.route is second
        assert runtime.residuals == {0: x}
    assert seen == [first, first]


# -- descriptions that are wrong --


@pytest.mark.parametrize(
    ("site", "message"),
    [
        (
            Sublayer("ffn", "mlp.down_proj", "post_attention_layernorm", argument=(3, "other")),
            "without the residual as",
        ),
        (Sublayer("ffn", "input_layernorm", "post_attention_layernorm"), "ran before its residual was seen"),
        (Sublayer("ffn", "self_attn", "input_layernorm"), "returned more than one tensor"),
    ],
)
def test_modules_that_do_not_behave_as_described_are_named(site: Sublayer, message: str) -> None:
    family = Family(("llama",), (LayerStack("", "layers", (site,)),))
    backbone = hooked(tiny.model("llama"), family)
    with pytest.raises(BackboneError, match=rf"site layer\.0/ffn: a Llama.*{message}"):
        run(backbone, Push(1.0), tiny.inputs("llama"))
    assert at_rest(backbone.runtime)


def test_hooks_are_bound_methods_of_picklable_objects() -> None:
    model = tiny.model("bert")
    hooked(model)
    hooks = [hook for module in model.modules() for hook in module._forward_hooks.values()]
    assert len(hooks) == 14  # two where masks end
    assert not any(isinstance(hook, partial) or hook.__name__ == "<lambda>" for hook in hooks)
    assert OF_MODEL_TYPE["bert"] is hooked(tiny.model("bert")).family


# -- sub-layers that are not one after another --


class Count:
    """A route that notes what every site reads and changes nothing."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.residuals: dict[int, Tensor] = {}

    def delta(self, site: int, reading: Reading) -> None:
        self.shapes.append(tuple(reading.output.shape))
        self.residuals[site] = reading.residual


def test_side_by_side_the_second_sublayer_adds_to_the_stream_after_the_first() -> None:
    backbone = hooked(zoo.model("gptj"))
    block: Any = backbone.trunk.h[0]
    backbone.trunk.h = backbone.trunk.h[:1]
    backbone.trunk.ln_f = nn.Identity()
    inputs, seen = zoo.inputs("gptj"), Count()
    with torch.no_grad():
        x = backbone.trunk.wte(inputs["input_ids"])
        base = run(backbone, seen, inputs)
        fed = block.mlp(block.ln_1(x))
        torch.testing.assert_close(seen.residuals[1], base - fed)
        assert torch.equal(seen.residuals[0], x)
        torch.testing.assert_close(run(backbone, Push(0.5), inputs), base + 1.0)

        class Recorded(Push):
            def delta(self, site: int, reading: Reading) -> Delta:
                seen.residuals[site] = reading.residual
                return super().delta(site, reading)

        run(backbone, Recorded(0.5), inputs)
        torch.testing.assert_close(seen.residuals[1], base - fed + 0.5)


def test_a_module_that_serves_both_sublayers_is_each_ones_in_turn() -> None:
    for family in ("vit", "beit", "dinov2"):
        backbone, seen = hooked(zoo.model(family)), Count()
        run(backbone, seen, zoo.inputs(family))
        assert list(seen.residuals) == [site.index for site in backbone.sites if site.place == "sublayer"], family
        assert not torch.equal(seen.residuals[0], seen.residuals[1])


def test_rows_and_tokens_that_a_block_joins_are_apart_for_adapters() -> None:
    for family in ("opt", "opt-post"):
        backbone, seen = hooked(zoo.model(family)), Count()
        run(backbone, seen, zoo.inputs(family, rows=3, tokens=6))
        assert seen.shapes == [(3, 6, zoo.WIDTH)] * 4, family


def test_linears_of_joined_rows_and_tokens_are_read_apart() -> None:
    backbone = hooked(zoo.model("opt"))
    linears = [site for site in backbone.sites if site.name.startswith("layer.1/ffn.")]
    for site in linears:
        backbone.open(site)
    inputs, seen = zoo.inputs("opt", rows=3, tokens=6), Count()
    base = run(backbone, seen, inputs)
    assert [site.name for site in linears] == [
        f"layer.1/ffn.{name}" for name in ("up", "up.input", "down", "down.input")
    ]
    assert set(seen.shapes) == {(3, 6, zoo.WIDTH), (3, 6, 64)}
    assert len(seen.shapes) == 8

    class Second:
        def delta(self, site: int, reading: Reading) -> Delta | None:
            if site not in [linear.index for linear in linears]:
                return None
            change = torch.zeros_like(reading.output)
            change[1] = 1.0
            return Delta(change)

    moved = (run(backbone, Second(), inputs) - base).abs().amax(dim=(1, 2))
    assert moved[1] > 0.1
    assert moved[0] == moved[2] == 0


@pytest.mark.parametrize("place", ["before", "after"])
def test_on_a_branch_with_a_norm_a_change_is_before_or_after_it(place: str) -> None:
    backbone = hooked(zoo.model("gemma2"))
    layer: Any = backbone.trunk.layers[0]
    backbone.trunk.layers = backbone.trunk.layers[:1]
    backbone.trunk.norm = nn.Identity()
    outputs: list[Tensor] = []
    layer.mlp.down_proj.register_forward_hook(lambda module, args, output: outputs.append(output))
    inputs, seen = zoo.inputs("gemma2"), Count()
    base = run(backbone, seen, inputs)
    change = torch.randn_like(base)

    class One:
        def delta(self, site: int, reading: Reading) -> Delta | None:
            return Delta(**{place: change}) if site == 1 else None

    found = run(backbone, One(), inputs)
    norm = layer.post_feedforward_layernorm
    with torch.no_grad():
        right = norm(outputs[0] + change) if place == "before" else norm(outputs[0]) + change
        torch.testing.assert_close(found, seen.residuals[1] + right)


def test_a_residual_that_never_came_is_noticed_where_no_module_is_shared() -> None:
    right = OF_MODEL_TYPE["llama"].stacks[0]
    lost = Sublayer("ffn", "mlp.down_proj", "input_layernorm", beside="cross")
    wrong = Family(("llama",), (LayerStack("", right.layers, (right.sites[0], lost)),))
    backbone = hooked(tiny.model("llama"), wrong)
    with pytest.raises(BackboneError, match="ran before its residual was seen"):
        run(backbone, Push(1.0), tiny.inputs("llama"))


class Masks:
    """A route that notes what every stack is told of its tokens."""

    def __init__(self, backbone: Backbone) -> None:
        self.backbone, self.seen = backbone, {}

    def delta(self, site: int, reading: Reading) -> None:
        told = None if reading.mask is None else tuple(map(tuple, reading.mask.tolist()))
        self.seen.setdefault(self.backbone.sites[site].stack, set()).add(told)


@pytest.mark.parametrize("family", ["clip", "siglip", "llava", "paligemma", "gemma3", "bart", "wav2vec2"])
def test_every_stack_is_told_which_of_its_own_tokens_are_real(family: str) -> None:
    backbone, inputs = hooked(zoo.model(family)), zoo.inputs(family)
    if family == "wav2vec2":
        mask = torch.ones_like(inputs["input_values"], dtype=torch.long)
        mask[1, 32:] = 0
    else:
        mask = torch.ones_like(inputs["input_ids"])
        mask[1, 7:] = 0
    route = Masks(backbone)
    run(backbone, route, {**inputs, "attention_mask": mask})
    told = {tuple(map(tuple, mask.tolist()))}
    if family == "wav2vec2":
        ((frames,),) = route.seen.values()
        assert [sum(row) for row in frames] == [14, 7]
    elif family == "bart":
        assert route.seen == {"encoder": told, "decoder": {None}}
    else:
        assert route.seen == {"text": told, "vision": {None}}


def test_a_step_with_a_cache_is_told_how_many_tokens_there_were() -> None:
    backbone, ids = hooked(tiny.model("llama")), tiny.inputs("llama")["input_ids"]
    route = Masks(backbone)
    with torch.no_grad(), backbone.runtime.running(route):
        first = backbone.trunk(input_ids=ids[:, :5], use_cache=True)
        assert route.seen.pop("") == {None}
        backbone.trunk(input_ids=ids[:, 5:], past_key_values=first.past_key_values)
    assert route.seen == {"": {((1,) * 7,) * 2}}
