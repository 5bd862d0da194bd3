"""The shared trunk: rows that become lanes inside say what separate runs say, and rows repeated at the entry."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from graftwork.compose.forward import headless
from graftwork.compose.lower import Lanes
from graftwork.compose.plan import Plan
from graftwork.compose.tree import Average, Composition, Fuse, Parallel, Split, Stack, fusions
from graftwork.compose.trunk import ENDING, SHARING, shares
from graftwork.model import AdapterModel
from tests import tiny, zoo
from tests.adapted import shaken
from tests.rig import relative
from tests.trees import compositions

CLOSE = 1e-5
UPPER = "seq_bn[reduction_factor=4,leave_out=[0]]"
METHODS = {
    "a": UPPER,
    "b": "double_seq_bn[reduction_factor=8,leave_out=[0]]",
    "top": "par_bn[reduction_factor=4,leave_out=[0,1]]",
    "lo": "lora[r=2,leave_out=[0]]",
    "pre": "prefix_tuning_flat[prefix_length=2,leave_out=[0]]",
    "hi": "seq_bn[reduction_factor=8]",
    "low": "double_seq_bn[reduction_factor=8,leave_out=[1,2]]",
}
GIVEN = tiny.inputs("bert", rows=3)
MASK = torch.ones(3, 7, dtype=torch.long)
MASK[1, 4:] = 0


def made(methods: dict[str, str] = METHODS, family: str = "bert") -> AdapterModel:
    model = AdapterModel(tiny.model(family))
    for name, config in methods.items():
        model.add_adapter(name, config)
    shaken(model.parts, seed=3)
    return model.eval()


@pytest.fixture(scope="module")
def model() -> AdapterModel:
    return made()


def plan(model: AdapterModel, setup: Any, rows: int = 3, skip: tuple[int, ...] = ()) -> Plan:
    return model._planner.plan(setup, "none", None, rows, skip)


def forks(model: AdapterModel, setup: Any, rows: int = 3, skip: tuple[int, ...] = ()) -> int | None:
    fork = plan(model, setup, rows, skip).fork
    return None if fork is None else fork.layer


def at_entry(model: AdapterModel, setup: Any, given: dict[str, Tensor], skip: tuple[int, ...] = ()) -> Tensor:
    """The last hidden state, with rows repeated before the model begins."""
    whole = replace(plan(model, setup, len(next(iter(given.values()))), skip), fork=None)
    last: Tensor = headless(model.backbone, whole, whole.repeat(given), {})[0]
    return last


# -- every family ----------------------------------------------------------------------------------------------------


def made_of(family: str) -> str:
    return str(zoo.MAKERS[family]().config.model_type)


def sharing() -> list[str]:
    return [family for family in zoo.MAKERS if made_of(family) in SHARING]


@pytest.mark.parametrize("family", sharing())
@pytest.mark.parametrize("rows", [1, 2, 9])  # as many rows as tokens: what has no row axis must not look as if it had
def test_a_family_that_shares_says_what_separate_runs_say(family: str, rows: int) -> None:
    model = AdapterModel(zoo.model(family))
    names = ["a", "pre"] if family == "deberta-v3" else ["a", "lo", "pre"]
    for name in names:
        model.add_adapter(name, METHODS[name])
    shaken(model.parts, seed=3)
    model.eval()
    assert shares(model.backbone)
    assert forks(model, Parallel(*names, None), rows) == 1
    given = {key: value for key, value in zoo.inputs(family, rows=rows).items() if key != "encoder_hidden_states"}
    lead = next(iter(given.values()))
    real = torch.ones(lead.shape[0], 1, dtype=torch.bool)
    if "pixel_values" not in given:
        mask = torch.ones(lead.shape[:2], dtype=torch.long)
        mask[1:2, lead.shape[1] // 2 :] = 0
        given["attention_mask"] = mask
        real = mask.bool() if "input_ids" in given else real & (torch.arange(rows) != 1).unsqueeze(1)
    with torch.no_grad():
        found = model(**given, adapters=Parallel(*names, None), head="none", output_hidden_states=True)
        alone = [model(**given, adapters=one, head="none", output_hidden_states=True) for one in (*names, None)]
    for got, *expected in zip(
        (found[0], *found.hidden_states), *((one[0], *one.hidden_states) for one in alone), strict=True
    ):
        counted = real.expand(rows, got.shape[1])
        for part, own in zip(got.chunk(len(alone)), expected, strict=True):
            assert relative(part[counted], own[counted]) < CLOSE
    assert relative(alone[0][0], alone[-1][0]) > 0.01  # the branches differ
    for number, layer in enumerate(getattr(found.get("past_key_values"), "layers", ())):
        keys = torch.cat([one.past_key_values.layers[number].keys for one in alone])
        assert relative(layer.keys, keys) < CLOSE or "pre" in names  # a prefix is not in the cache of the others


@pytest.mark.parametrize("family", ["albert-groups", "t5", "bart", "clip-text", "bloom", "llava"])
def test_other_families_repeat_rows_at_the_entry(family: str) -> None:
    model = AdapterModel(zoo.model(family))
    model.add_adapter("a", "seq_bn[reduction_factor=4,leave_out=[0]]")
    shaken(model.parts, seed=3)
    model.eval()
    assert forks(model, Parallel("a", None), 2) == 1
    assert not shares(model.backbone)
    given = zoo.inputs(family)
    with torch.no_grad():
        found = model(**given, adapters=Parallel("a", None), head="none")[0]
        alone = [model(**given, adapters=one, head="none")[0] for one in ("a", None)]
    assert relative(found, torch.cat(alone)) < CLOSE


# -- where lanes part ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setup", "layer"),
    [
        (Parallel("a", "b"), 1),
        (Parallel("top", None), 2),
        (Parallel("top", "a"), 1),
        (Parallel(Stack("hi", "a"), Stack("hi", "b")), 1),  # in layer 0 both are the same adapter alone
        (Parallel(Stack("hi", "a"), "hi"), 1),
        (Parallel(Stack("hi", "a"), "a"), 0),
        (Parallel("hi", None), 0),  # at the norm in which it ends
        (Parallel(Average("hi", "a"), Average("hi", "b")), 1),
        (Parallel(Average("hi", "a"), Stack("hi", "b")), 0),  # an average of one member is not that member
        (Parallel("a", "a"), 3),
        (Parallel(Split("hi", "a", splits=[3, 4]), Split("a", "hi", splits=[3, 4])), 0),
        (Parallel("low", None), None),  # before the first norm of all
        (Parallel(Split("top", "a", splits=[3, 4]), Split("a", "top", splits=[3, 4])), 1),
        ([Parallel("a", "b"), "hi", Parallel("top", None, "top")], 1),
        (["a", "b", "hi"], None),  # nothing is repeated
        ("a", None),
    ],
)
def test_lanes_part_at_the_first_layer_where_their_programs_differ(
    model: AdapterModel, setup: Any, layer: int | None
) -> None:
    assert forks(model, setup) == layer
    with torch.no_grad():
        found = model(**GIVEN, attention_mask=MASK, adapters=setup, head="none")[0]
        assert relative(found, at_entry(model, setup, {**GIVEN, "attention_mask": MASK})) < CLOSE


def test_layers_skipped_in_a_call_are_shared(model: AdapterModel) -> None:
    setup = Parallel("hi", "a", None)
    for skip, layer in (((), 0), ((0,), 1), ((0, 1), 2), ((1,), 0), ((0, 1, 2), 3)):
        assert forks(model, setup, 3, skip) == layer
        with torch.no_grad():
            found = model(**GIVEN, adapters=setup, head="none", skip_layers=skip)[0]
            alone = [model(**GIVEN, adapters=one, head="none", skip_layers=skip)[0] for one in setup.children]
        assert relative(found, torch.cat(alone)) < CLOSE


def test_prompts_are_put_in_at_the_entry() -> None:
    model = made({"a": UPPER, "say": "prompt_tuning[prompt_length=2]", "inv": "seq_bn_inv[leave_out=[0]]"})
    assert forks(model, Parallel(Stack("say", "a"), "say")) is None
    assert forks(model, Parallel("inv", None)) is None  # the embeddings differ
    assert forks(model, Parallel(Stack("inv", "a"), "inv")) == 1


def test_a_fork_says_where_it_is(model: AdapterModel) -> None:
    assert str(plan(model, Parallel("a", "b")).fork) == ("6 lanes of 3 rows share 1 of 3 layers and part at layer 1")
    assert str(plan(model, Parallel("a", "a"), rows=1).fork) == "2 lanes of 1 row share all 3 layers"
    fork = plan(model, Parallel("a", None)).fork
    assert fork is not None
    assert str(fork) == "6 lanes of 3 rows share 1 of 3 layers and part at layer 1"
    late = "6 lanes of 3 rows share 2 of 3 layers and part at the norm in which layer 1 ends"
    assert str(fork.on(model.backbone)) == late


@pytest.mark.parametrize("family", sorted(family for family in sharing() if made_of(family) in ENDING))
@pytest.mark.parametrize("rows", [1, 2, 9])
def test_lanes_part_at_the_norm_in_which_a_layer_ends(family: str, rows: int) -> None:
    model = AdapterModel(zoo.model(family))
    names = ("a", "plus", "hi")
    for name, config in (*METHODS.items(), ("plus", "adapter_plus[reduction_factor=4]")):
        if name in names:
            model.add_adapter(name, config)
    shaken(model.parts, seed=3)
    model.eval()
    given = {key: value for key, value in zoo.inputs(family, rows=rows).items() if key != "encoder_hidden_states"}
    real = torch.ones_like(given["input_ids"])
    real[1:2, 4:] = 0
    given["attention_mask"] = real
    asked: dict[str, Any] = {"head": "none", "output_hidden_states": True}
    ffn = [site.index for site in model.backbone.sites if site.kind == "ffn"]
    for setup, skip, layer in ((Parallel(*names, None), (), 0), (Parallel("a", "hi", None), (0,), 1)):
        fork = plan(model, setup, rows, skip).fork
        assert fork is not None
        assert (fork.layer, fork.on(model.backbone).site) == (layer, ffn[layer])
        with torch.no_grad():
            found = model(**given, adapters=setup, skip_layers=skip, **asked)
            alone = [model(**given, adapters=one, skip_layers=skip, **asked) for one in setup.children]
        for got, *expected in zip(found.hidden_states, *(one.hidden_states for one in alone), strict=True):
            for part, own in zip(got.chunk(len(alone)), expected, strict=True):
                assert relative(part[real.bool()], own[real.bool()]) < CLOSE
        assert relative(alone[0][0], alone[-1][0]) > 0.01


def test_only_the_rows_run_below_the_fork(model: AdapterModel) -> None:
    assert ran(model, Parallel("top", None)) == [3, 3, 3]
    assert ran(model, Parallel("a", "hi"), skip=(0,)) == [3, 3, 6]
    assert ran(model, Parallel("a", "b")) == [3, 6, 6]  # one of them is at the attention, too
    assert ran(model, Parallel("low", None)) == [6, 6, 6]


def ran(model: AdapterModel, setup: Composition, skip: tuple[int, ...] = ()) -> list[int]:
    """With how many rows the attention of each layer runs."""
    seen: list[int] = []
    layers = model.base.encoder.layer
    handles = [layer.attention.register_forward_hook(lambda m, a, out: seen.append(len(out[0]))) for layer in layers]
    with torch.no_grad():
        model(**GIVEN, adapters=setup, head="none", skip_layers=skip)
    for handle in handles:
        handle.remove()
    return seen


@given(data=st.data())
def test_random_compositions_fork_into_what_they_say_at_the_entry(model: AdapterModel, data: st.DataObject) -> None:
    names = ("a", "b", "top", "lo", "hi")
    setup: Composition = data.draw(compositions(names, batch=3, tokens=7))
    skip = tuple(data.draw(st.sets(st.integers(0, 2), max_size=2)))
    for fuse in fusions(setup):
        if fuse.name not in model.parts.fusion_records:
            try:
                model.add_adapter_fusion(fuse)
            except Exception:  # the members share no site
                return
            shaken(model.parts.fusions, seed=7)
    given = {**GIVEN, "attention_mask": MASK}
    with torch.no_grad():
        found = model(**given, adapters=setup, head="none", skip_layers=skip)[0]
        assert relative(found, at_entry(model, setup, given, skip)) < CLOSE


# -- heads, outputs, gradients ---------------------------------------------------------------------------------------


def test_heads_labels_and_word_starts_get_a_row_for_each_lane() -> None:
    model = made({"a": UPPER, "b": UPPER})
    for name in ("a", "b"):
        model.add_classification_head(name, num_labels=3)
    model.add_tagging_head("tags", num_labels=2)
    shaken(model.parts.heads, seed=4)
    labels, starts = torch.tensor([0, 2, 1]), torch.tensor([[0, 2, 5], [0, 1, 3], [1, 2, 3]])
    with torch.no_grad():
        whole = model(**GIVEN, attention_mask=MASK, labels=labels, adapters=Parallel("a", "b"))
        alone = [model(**GIVEN, attention_mask=MASK, labels=labels, adapters=one) for one in ("a", "b")]
        for group, own in zip(whole.groups, alone, strict=True):
            torch.testing.assert_close(group.logits, own.logits, rtol=CLOSE, atol=CLOSE)
        torch.testing.assert_close(whole.loss, alone[0].loss + alone[1].loss)
        tags = model(**GIVEN, adapters=Parallel("a", "b"), head="tags", word_starts=starts)
        own = [model(**GIVEN, adapters=one, head="tags", word_starts=starts).logits for one in ("a", "b")]
        torch.testing.assert_close(tags.logits, torch.cat(own), rtol=CLOSE, atol=CLOSE)


def test_recorded_states_and_attentions_have_a_row_for_each_lane() -> None:
    base = tiny.model("bert")
    base.set_attn_implementation("eager")
    model = AdapterModel(base)
    for name in ("a", "b"):
        model.add_adapter(name, UPPER)
        model.add_classification_head(name, num_labels=2)
    shaken(model.parts, seed=3)
    model.eval()
    asked = {"output_hidden_states": True, "output_attentions": True}
    with torch.no_grad():
        for head in (None, "none"):
            found = model(**GIVEN, adapters=Parallel("a", "b"), head=head, **asked)
            alone = [model(**GIVEN, adapters=one, head=head, **asked) for one in ("a", "b")]
            for key in ("hidden_states", "attentions"):
                for got, *own in zip(found[key], *(one[key] for one in alone), strict=True):
                    assert relative(got, torch.cat(own)) < CLOSE


def test_gradients_are_those_of_rows_repeated_at_the_entry() -> None:
    model = made({"hi": METHODS["hi"], "a": UPPER, "b": UPPER})
    setup = Parallel(Stack("hi", "a"), Stack("hi", "b"))
    model.train_adapter("hi")
    model.parts.requires_grad_(True)
    model.eval()
    assert shares(model.backbone)

    def gradients(last: Tensor) -> dict[str, Tensor]:
        weights = torch.linspace(-1, 1, last.numel()).view_as(last)
        model.zero_grad()
        (weights * last).sum().backward()
        return {name: weight.grad.clone() for name, weight in model.parts.named_parameters() if weight.grad is not None}

    found = gradients(model(**GIVEN, attention_mask=MASK, adapters=setup, head="none")[0])
    expected = gradients(at_entry(model, setup, {**GIVEN, "attention_mask": MASK}))
    assert found.keys() == expected.keys()
    assert found
    for name, own in expected.items():
        torch.testing.assert_close(found[name], own, rtol=1e-4, atol=1e-5)


# -- where rows are repeated at the entry instead ----------------------------------------------------------------------


def test_a_model_in_training_draws_dropout_for_every_lane() -> None:
    model = made({"a": UPPER, "b": UPPER})
    assert shares(model.backbone)
    model.train()
    assert not shares(model.backbone)
    lower = model(**GIVEN, adapters=Parallel("a", "a"), head="none", output_hidden_states=True).hidden_states[1]
    assert not torch.equal(lower[:3], lower[3:])


def test_further_arguments_are_repeated_at_the_entry() -> None:
    model = made({"a": UPPER, "b": UPPER}, "bert-decoder")
    extra = {"encoder_hidden_states": torch.randn(3, 5, tiny.WIDTH, generator=torch.Generator().manual_seed(2))}
    with torch.no_grad():
        found = model(**GIVEN, adapters=Parallel("a", "b"), head="none", extra=extra)[0]
        alone = [model(**GIVEN, adapters=one, head="none", extra=extra)[0] for one in ("a", "b")]
    assert relative(found, torch.cat(alone)) < CLOSE


def test_a_compiled_model_repeats_rows_at_the_entry() -> None:
    model = made({"a": UPPER, "b": UPPER})
    with torch.no_grad():
        expected = model(**GIVEN, adapters=Parallel("a", "b"), head="none")[0]
    model.base.encoder.layer[1].compile(backend="eager")
    assert not shares(model.backbone)
    with torch.no_grad():
        assert relative(model(**GIVEN, adapters=Parallel("a", "b"), head="none")[0], expected) < CLOSE


def test_a_copy_forks_by_itself() -> None:
    model = made({"a": UPPER, "b": UPPER})
    with torch.no_grad():
        expected = model(**GIVEN, adapters=Parallel("a", "b"), head="none")[0]
        twin = copy.deepcopy(model)
        assert torch.equal(twin(**GIVEN, adapters=Parallel("a", "b"), head="none")[0], expected)
        hooks = [len(layer._forward_pre_hooks) for layer in twin.base.encoder.layer]
        twin(**GIVEN, adapters=Parallel("b", "a"), head="none")
        assert hooks == [len(layer._forward_pre_hooks) for layer in twin.base.encoder.layer]
        shaken(twin.parts, seed=9)
        assert torch.equal(model(**GIVEN, adapters=Parallel("a", "b"), head="none")[0], expected)


def test_no_hook_is_placed_before_a_call_forks() -> None:
    model = made({"a": UPPER, "b": UPPER})
    before = [len(layer._forward_pre_hooks) for layer in model.base.encoder.layer]
    with torch.no_grad():
        model(**GIVEN, adapters=["a", "b", None], head="none")
        assert before == [len(layer._forward_pre_hooks) for layer in model.base.encoder.layer]
        model(**GIVEN, adapters=Parallel("a", "b"), head="none")
    assert before != [len(layer._forward_pre_hooks) for layer in model.base.encoder.layer]


@pytest.mark.parametrize("execution", ["folded", "banked", "auto"])
def test_lanes_of_every_executor_fork(execution: str) -> None:
    model = made()
    model.add_adapter_fusion(Fuse("a", "b", name="f"))
    shaken(model.parts.fusions, seed=7)
    model.requires_grad_(False)
    setups: list[tuple[Any, tuple[int, ...], int]] = [
        (Parallel(Stack("hi", Fuse("a", "b", name="f")), Average("a", "b"), None), (0,), 1),
        (Parallel(Stack("hi", "a"), Stack("hi", "b")), (), 1),
        (Lanes([1, 0, 1, 2], ["a", "b", "top", Stack("hi", "a")]), (), 1),
    ]
    for setup, skip, layer in setups:
        for _ in range(2):  # the second time every weight has changed
            with torch.no_grad():
                model.execution = "reference"
                expected = model(**GIVEN, adapters=setup, head="none", skip_layers=skip)[0]
                model.execution = execution
                assert forks(model, setup, 3, skip) == layer
                found = model(**GIVEN, adapters=setup, head="none", skip_layers=skip)[0]
            assert relative(found, expected) < CLOSE
            shaken(model.parts, seed=11)
