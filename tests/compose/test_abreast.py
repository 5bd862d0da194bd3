"""Batches side by side: each as it is alone, its gradients its own, whatever the others do."""

from typing import Any

import pytest
import torch
from torch import Tensor

from graftwork.compose.abreast import Call, run_abreast
from graftwork.compose.forward import Asks
from graftwork.compose.inputs import for_heads, shape_of
from graftwork.core.heads import HeadConfig
from graftwork.errors import AdapterError, CompositionError
from graftwork.model import AdapterModel
from tests import tiny

# config of the adapter -> kind of the head
KINDS: list[tuple[Any, str]] = [
    ("seq_bn[reduction_factor=4]", "classification"),
    ("double_seq_bn[reduction_factor=8]", "tagging"),
    ("par_bn[reduction_factor=2]", "regression"),
    ("lora[r=4]", "classification"),
    (None, "classification"),
    ("prefix_tuning[flat=True,prefix_length=3]", "tagging"),
    ("seq_bn_inv[reduction_factor=4]", "masked_lm"),
    ("ia3", "classification"),
]


def models(family: str, kinds: list[tuple[Any, str]]) -> list[AdapterModel]:
    """Models over one backbone, each with one adapter (or none) and head, in double precision."""
    first = AdapterModel(tiny.model(family).double())
    made = [first, *(AdapterModel(first.backbone) for _ in kinds[1:])]
    for number, (model, (config, head)) in enumerate(zip(made, kinds, strict=True)):
        torch.manual_seed(number)
        if config is not None:
            model.add_adapter("same", config)
        if head == "masked_lm":
            model.add_masked_lm_head("same")
        else:
            outputs = {"regression": 1, "question_answering": 2}.get(head, 3)
            pooling = "none" if head in ("tagging", "question_answering") else model.default_pooling
            model.add_head("same", HeadConfig(kind=head, num_outputs=outputs, layers=1, pooling=pooling, dropout=0.0))
        with torch.no_grad():
            for parameter in model.parts.parameters():
                parameter.copy_(torch.randn_like(parameter) * 0.2)
        model.parts.train_only([*([("adapters", "same")] if config else []), ("heads", "same")])
        model.set_active_adapters("same" if config else None)
        model.eval()
    return made


def batch(rows: int, tokens: int, head: str, seed: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, tiny.VOCABULARY, (rows, tokens), generator=draw)
    lengths = torch.randint(2, tokens + 1, (rows,), generator=draw)
    lengths[0] = tokens
    mask = (torch.arange(tokens) < lengths[:, None]).long()
    shape = {"tagging": (rows, tokens), "masked_lm": (rows, tokens), "question_answering": (rows, 2)}.get(head, (rows,))
    labels = torch.randint(0, 3, shape, generator=draw)
    if head in ("tagging", "masked_lm"):
        labels = torch.where(mask.bool(), labels, -100)
    return {
        "input_ids": torch.where(mask.bool(), ids, 0),
        "attention_mask": mask,
        "labels": labels.double() if head == "regression" else labels,
    }


def call(model: AdapterModel, inputs: dict[str, Tensor]) -> Call:
    shape = shape_of(inputs)
    plan = model.plan(model.active_adapters, "same", shape.rows)
    return Call(model.parts, plan, for_heads(inputs, shape), Asks(None, shape.choices, training=True))


def together(made: list[AdapterModel], inputs: list[dict[str, Tensor]]) -> list[Tensor]:
    calls = [call(model, own) for model, own in zip(made, inputs, strict=True)]
    losses = [answer().loss for answer in run_abreast(made[0].backbone, calls, {})]
    torch.autograd.backward(losses)
    return losses


def gradients(model: AdapterModel) -> dict[str, Tensor]:
    found = {name: own.grad for name, own in model.parts.named_parameters() if own.grad is not None}
    model.zero_grad()
    return found


PROMPTS: list[tuple[Any, str]] = [
    ("prompt_tuning[prompt_length=4]", "classification"),
    ("prompt_tuning[prompt_length=4]", "tagging"),
    ("prompt_tuning[prompt_length=4]", "question_answering"),
]


@pytest.mark.parametrize("kinds", [KINDS, PROMPTS], ids=["without prompts", "with prompts"])
@pytest.mark.parametrize("family", ["bert", "roberta", "llama", "t5"])
def test_losses_and_gradients_are_those_of_each_batch_alone(family: str, kinds: list[tuple[Any, str]]) -> None:
    kinds = [kind for kind in kinds if family != "t5" or kind[1] != "masked_lm"]
    made = models(family, kinds)
    inputs = [batch(2 + at % 3, 4 + at, head, at) for at, (_, head) in enumerate(kinds)]
    losses = together(made, inputs)
    shared = [gradients(model) for model in made]
    for model, own, loss, gradient in zip(made, inputs, losses, shared, strict=True):
        alone = model(**own).loss
        alone.backward()
        expected = gradients(model)
        assert loss.item() == pytest.approx(alone.item(), rel=1e-6)
        assert gradient.keys() == expected.keys()
        for name, value in expected.items():
            scale = value.abs().max().clamp_min(1e-3)
            assert (gradient[name] - value).abs().max() < 1e-5 * scale, name
    assert all(parameter.grad is None for parameter in made[0].base.parameters())


def test_another_batch_that_is_not_finite_changes_nothing() -> None:
    kinds = KINDS[:4]
    made = models("bert", kinds)
    inputs = [batch(3, 6, head, at) for at, (_, head) in enumerate(kinds)]
    together(made, inputs)
    before = [gradients(model) for model in made]
    with torch.no_grad():
        next(iter(made[1].parts.adapters.parameters())).fill_(float("nan"))
    losses = together(made, inputs)
    after = [gradients(model) for model in made]
    assert [bool(loss.isfinite()) for loss in losses] == [True, False, True, True]
    assert any(value.isnan().any() for value in after[1].values())
    for number in (0, 2, 3):
        assert all(torch.equal(before[number][name], value) for name, value in after[number].items())


def test_what_cannot_share_a_forward_is_refused() -> None:
    one, other = models("bert", KINDS[:2])
    one.add_adapter("b", "seq_bn")
    inputs = batch(2, 5, "classification", 0)
    plain = call(other, batch(2, 5, "tagging", 0))
    for setup in ("Parallel(same, b)", "Split(same:2, b:3)"):
        plan = one.plan(setup, "same", 2)
        with pytest.raises(CompositionError, match="cannot run side by side; call once"):
            run_abreast(one.backbone, [Call(one.parts, plan, inputs, Asks(None, None, True)), plain], {})
    one.add_adapter("prompt", "prompt_tuning")
    prompted = Call(one.parts, one.plan("prompt", "same", 2), inputs, Asks(None, None, True))
    with pytest.raises(CompositionError, match="batches with prompts of 0, 10 tokens"):
        run_abreast(one.backbone, [prompted, plain], {})
    typed = inputs | {"token_type_ids": torch.zeros_like(inputs["input_ids"])}
    with pytest.raises(CompositionError, match=r"batches with other inputs.*token_type_ids"):
        run_abreast(one.backbone, [call(one, typed), plain], {})


def test_models_over_one_backbone_have_parts_of_their_own() -> None:
    one, other = models("bert", KINDS[:2])
    assert one.base is other.base
    one.add_adapter("b", "seq_bn")
    with pytest.raises(AdapterError, match="no adapter 'b'"):
        other.set_active_adapters("b")
    ids = batch(2, 5, "classification", 0)["input_ids"]
    before = one(ids).logits
    other.delete_head("same")
    other.set_active_adapters(None)
    other.delete_adapter("same")
    assert torch.equal(one(ids).logits, before)


def test_batches_whose_rows_differ_run_in_their_banks() -> None:
    made = models("bert", [("seq_bn[reduction_factor=4]", "classification")] * 2)
    for model in made:
        model.add_adapter("other", "seq_bn[reduction_factor=4]")
        model.execution = "auto"
    inputs = [
        for_heads(batch(3, 5, "classification", seed), shape_of(batch(3, 5, "classification", seed))) for seed in (1, 2)
    ]
    with torch.no_grad():
        calls = []
        for model, own in zip(made, inputs, strict=True):
            plan = model.plan(["same", "other", None], "same", 3)
            assert plan.route is not None
            assert plan.route.banked is not None
            calls.append(Call(model.parts, plan, own, Asks(None, None, training=False)))
        together = [answer().logits for answer in run_abreast(made[0].backbone, calls, {})]
        for model, own, found in zip(made, inputs, together, strict=True):
            model.execution = "reference"
            alone = model(**own, adapters=["same", "other", None], head="same")
            torch.testing.assert_close(found, alone.logits)
