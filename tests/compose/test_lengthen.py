"""Prefixes and prompts in compositions: what they add up to, where rows differ, and what is refused with the reason."""

import pytest
import torch

from graftwork.compose.lengthen import merge_positions, merge_rows
from graftwork.core.site import Positions
from graftwork.errors import CompositionError
from graftwork.model import AdapterModel
from tests import tiny, zoo
from tests.adapted import last, shaken

PREFIXES = {"p": "prefix_tuning_flat[prefix_length=2]", "q": "prefix_tuning_flat[prefix_length=3]"}
PROMPTS = {"s": "prompt_tuning[prompt_length=2]", "t": "prompt_tuning[prompt_length=3,combine=prefix_after_bos]"}


def model(**configs: str) -> AdapterModel:
    made = AdapterModel(tiny.model("bert"))
    for name, config in configs.items():
        made.add_adapter(name, config)
    shaken(made.parts, seed=2)
    return made.eval()


def run(made: AdapterModel, adapters: object, rows: slice = slice(None)) -> torch.Tensor:
    inputs = {key: value[rows] for key, value in tiny.inputs("bert", rows=3).items()}
    mask = torch.ones_like(inputs["input_ids"])
    mask[:, -1] = 0
    with torch.no_grad():
        return last(made(**inputs, attention_mask=mask, adapters=adapters))


def test_a_stack_or_a_fusion_of_prefixes_is_all_their_positions() -> None:
    made = model(**PREFIXES)

    joined = AdapterModel(tiny.model("bert"))
    joined.add_adapter("j", "prefix_tuning_flat[prefix_length=5]")
    for site, module in joined.parts.modules_of("adapters", "j").items():
        parts = [made.parts.modules_of("adapters", name)[site] for name in PREFIXES]
        with torch.no_grad():
            for key in ("keys", "values"):
                getattr(module, key).copy_(torch.cat([getattr(part, key) for part in parts]))
    expected = run(joined.eval(), "j")
    assert torch.allclose(run(made, "Stack(p, q)"), expected, atol=1e-5)
    assert not torch.allclose(run(made, "p"), expected, atol=1e-3)


@pytest.mark.parametrize("configs", [PREFIXES, PROMPTS])
def test_rows_with_prefixes_and_prompts_of_unequal_length_are_what_they_are_alone(configs: dict[str, str]) -> None:
    made = model(**configs)
    first, second = configs
    mixed = run(made, [first, None, second])
    for row, name in enumerate((first, None, second)):
        alone = run(made, [name], slice(row, row + 1))
        assert torch.allclose(mixed[row, -alone.shape[1] :], alone[0], atol=1e-5)


@pytest.mark.parametrize("family", ["vit", "clip-vision", "siglip-vision", "dinov2"])
def test_images_with_prompts_are_run_without_a_mask_of_their_channels(family: str) -> None:
    made, inputs = AdapterModel(zoo.model(family)), zoo.inputs(family)
    made.add_adapter("s", PROMPTS["s"])
    made.add_adapter("t", "prompt_tuning[prompt_length=3]")
    shaken(made.parts, seed=2)
    prompt = made.parts.modules_of("adapters", "s")["prompt"].embedding
    kept = made.backbone.trunk.embeddings.register_forward_hook(
        lambda _, args, e: torch.cat((prompt.expand(2, -1, -1), e), dim=1)
    )
    with torch.no_grad():
        expected = last(made(**inputs, adapters=None))
        kept.remove()
        found = last(made.eval()(**inputs, adapters=["s", "s"]))
        assert torch.allclose(found, expected, atol=1e-5)
        with pytest.raises(CompositionError, match="rows with prompts of 0, 2 tokens cannot share a batch of images"):
            made(**inputs, adapters=["s", None])
        with pytest.raises(CompositionError, match="rows with prompts of 2, 3 tokens"):
            made(**inputs, adapters=["s", "t"])


def test_prompts_of_a_stack_stand_in_order() -> None:
    made = model(**PROMPTS)
    assert run(made, "Stack(s, t)").shape[1] == 7 + 5
    assert not torch.allclose(run(made, "Stack(s, t)"), run(made, "Stack(t, s)"), atol=1e-3)


@pytest.mark.parametrize(
    ("composition", "configs", "message"),
    [
        ("Average(p, q)", PREFIXES, r"Average\(p, q\) has no meaning for prefixes and prompts: .* no mean"),
        ("Average(s, t)", PROMPTS, "positions have no mean"),
        ("Split(p:3, q:4)", PREFIXES, "a Split sends the tokens of a row to different adapters, but prefixes"),
    ],
)
def test_what_has_no_meaning_is_refused(composition: str, configs: dict[str, str], message: str) -> None:
    with pytest.raises(CompositionError, match=message):
        run(model(**configs), composition)


def test_merged_positions_end_where_the_real_ones_begin() -> None:
    short, long = torch.ones(1, 1, 1, 2), torch.full((1, 1, 3, 2), 2.0)
    merged = merge_positions(
        [(torch.tensor([0]), Positions(short, short)), (torch.tensor([2]), Positions(long, long))], rows=3
    )
    assert merged.keys[:, 0, :, 0].tolist() == [[0, 0, 1], [0, 0, 0], [2, 2, 2]]
    assert merged.real is not None
    assert merged.real.tolist() == [[False, False, True], [False, False, False], [True, True, True]]


def test_merged_rows_are_filled_up_in_front() -> None:
    others = torch.tensor([[1, 2], [3, 4], [5, 6]])
    parts = [(torch.tensor([0]), torch.tensor([[9, 1, 2]])), (torch.tensor([2]), torch.tensor([[9, 9, 5, 6]]))]
    assert merge_rows(parts, 3, others, fill=-1).tolist() == [[-1, 9, 1, 2], [-1, -1, 3, 4], [9, 9, 5, 6]]
