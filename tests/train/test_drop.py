"""AdapterDrop in training: which layers a step drops, what then trains, and what a robust package says of itself."""

import json
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from graftwork.build import package_task
from graftwork.compose.tree import Fuse
from graftwork.core.backbone import load_tokenizer
from graftwork.errors import AdapterError, RecipeError
from graftwork.evaluate import evaluate
from graftwork.model import AdapterModel, AutoAdapterModel
from graftwork.registry.package import read
from graftwork.tasks.kinds import task_class
from graftwork.tasks.text import TextEncoder
from graftwork.train.batches import EncodedRows, as_it_is
from graftwork.train.data import load_data
from graftwork.train.drop import Drop, plan_drop
from graftwork.train.folder import RunFolder
from graftwork.train.outcome import read_result
from graftwork.train.report import lines
from graftwork.train.run import train
from graftwork.train.trainer import AdapterTrainer
from tests import tiny
from tests.train import small
from tests.train.launch import together
from tests.train.test_devices import check, tagging, written
from tests.train.test_trainer import encoded, encoder, settings


def model(config: str = "double_seq_bn[reduction_factor=4]", family: str = "bert") -> AdapterModel:
    made = AdapterModel(tiny.model(family))
    made.add_adapter("mood", config)
    made.add_classification_head("mood", num_labels=2)
    made.train_adapter("mood")
    return made


@given(seed=st.integers(0, 2**31 - 1), step=st.integers(0, 10**7), low=st.integers(0, 5), more=st.integers(1, 6))
def test_a_draw_follows_from_seed_and_step(seed: int, step: int, low: int, more: int) -> None:
    drop = Drop(low, low + more, seed)
    assert drop.layers(step) == Drop(low, low + more, seed).layers(step)
    assert drop.layers(step) == range(len(drop.layers(step)))
    assert low <= len(drop.layers(step)) <= low + more


def test_draws_are_uniform_and_both_ends_are_drawn() -> None:
    count = 6000
    for seed in (0, 1):
        drawn = Counter(len(Drop(0, 5, seed).layers(step)) for step in range(count))
        assert sorted(drawn) == [0, 1, 2, 3, 4, 5]
        chi_square = sum((drawn[n] - count / 6) ** 2 / (count / 6) for n in drawn)
        assert chi_square < 20.5  # 5 degrees of freedom: one of a thousand is above
    one, other = ([len(Drop(0, 5, seed).layers(step)) for step in range(60)] for seed in (0, 1))
    assert one != other


@pytest.mark.parametrize(
    ("config", "asked", "expected"),
    [
        ("seq_bn", "random", (0, 2)),  # three layers: one is left at least
        ("seq_bn", (1, 2), "layer 0 would never train; begin the range at 0 or below, or set adapter.leave_out: [0]"),
        ("seq_bn[leave_out=[0]]", (1, 2), (1, 2)),
        ("seq_bn[leave_out=[2]]", "random", (0, 1)),
        ("seq_bn", (0, 3), "[0, 3]: the highest layer with something that trains is 2, and with 3 dropped no adapter"),
        ("prompt_tuning[prompt_length=3]", "random", "random: what trains is in no layer, so there is nothing to drop"),
        ("lora[r=2]", (0, 1), (0, 1)),
        ("prefix_tuning", "random", (0, 2)),
    ],
)
def test_what_can_be_dropped(
    config: str, asked: Literal["random"] | tuple[int, int], expected: tuple[int, int] | str
) -> None:
    if isinstance(expected, tuple):
        assert plan_drop(model(config), asked, 7) == Drop(*expected, seed=7)
        return
    with pytest.raises(RecipeError) as caught:
        plan_drop(model(config), asked, 0)
    assert expected in str(caught.value)
    assert str(caught.value).startswith("training.drop: ")


def test_layers_of_an_encoder_decoder_are_counted_encoder_first() -> None:
    found = plan_drop(model("seq_bn[reduction_factor=4]", "bart"), "random", 0)
    assert found is not None
    assert found.high == 3  # two and two layers
    assert plan_drop(model(), None, 0) is None


def gradients(made: AdapterModel, skip: range) -> dict[str, Tensor]:
    made.eval().zero_grad(set_to_none=True)
    given = tiny.inputs("bert", rows=3)
    made(**given, labels=torch.tensor([0, 1, 1]), skip_layers=skip).loss.backward()
    return {name: weight.grad for name, weight in made.named_parameters() if weight.grad is not None}


def test_a_step_that_drops_layers_is_that_of_an_adapter_without_them() -> None:
    made = model().double()
    for dropped in (1, 2):
        left = [*range(dropped)]
        without = model(f"double_seq_bn[reduction_factor=4,leave_out={left}]".replace(" ", "")).double()
        without.load_state_dict({name: made.state_dict()[name] for name in without.state_dict()})
        found, expected = gradients(made, range(dropped)), gradients(without, range(0))
        assert found.keys() == expected.keys()
        assert not any(f"layer%2E{depth}" in name for name in found for depth in left)
        assert all(torch.equal(grad, expected[name]) for name, grad in found.items())


def test_there_is_no_graph_below_the_lowest_adapter_that_runs() -> None:
    made = model()
    kept: list[int] = []

    def count(tensor: Tensor) -> Tensor:
        kept[-1] += 1
        return tensor

    for dropped in range(3):
        kept.append(0)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            output = made(
                **tiny.inputs("bert"),
                labels=torch.tensor([0, 1]),
                skip_layers=range(dropped),
                output_hidden_states=True,
            )
        graph = [state.requires_grad for state in output.hidden_states]
        assert graph == [False] * (dropped + 1) + [True] * (3 - dropped)
    assert kept[0] - kept[1] == kept[1] - kept[2] > 20  # each layer that is dropped keeps nothing for a backward


def test_steps_drop_and_scoring_does_not(tmp_path: Path) -> None:
    made = model()
    seen: list[tuple[bool, int]] = []

    def look(module: Any, args: Any, given: dict[str, Any]) -> None:
        seen.append((made.training, len(given.get("skip_layers", ()))))

    made.register_forward_pre_hook(look, with_kwargs=True)
    trainer = AdapterTrainer(
        model=made,
        args=settings(tmp_path, remove_unused_columns=False, eval_strategy="steps", eval_steps=2,
                      gradient_accumulation_steps=2, num_train_epochs=4),
        train_dataset=EncodedRows(encoded() * 2, encoder()),
        eval_dataset=EncodedRows(encoded(), encoder()),
        data_collator=as_it_is,
    )  # fmt: skip
    trainer.drop = drop = Drop(0, 2, 3)
    trainer.train()
    steps = [n for training, n in seen if training]
    assert steps == [len(drop.layers(step)) for step in range(12) for _ in range(2)]  # batches of one step are alike
    assert len(set(steps)) == 3
    assert {n for training, n in seen if not training} == {0}
    assert any(not training for training, _ in seen)


def test_a_robust_package_knows_what_each_depth_costs(tmp_path: Path) -> None:
    recipe = small.recipe(tmp_path, {"training.drop": "random", "training.epochs": 3})
    result = train(recipe)
    package = read(result.folder / "package")
    fresh = AutoAdapterModel.from_pretrained(str(tmp_path / "base"))
    fresh.install(package)
    task = package_task(package.manifest)
    reader = TextEncoder(load_tokenizer(str(tmp_path / "base")), 32, "truncate")
    expected = [
        evaluate(fresh, task, reader, load_data(recipe).dev, adapters="mood", head="mood", skip_layers=range(n))[0]
        for n in range(3)
    ]
    assert result.drop_curve == expected
    assert result.drop_curve[0] == result.scores["dev"]
    assert json.loads((result.folder / "result.json").read_text())["drop_curve"] == expected
    training = package.manifest.training
    assert training["drop"] == [0, 2]
    assert training["dev_accuracy_by_layers_dropped"] == {str(n): found["accuracy"] for n, found in enumerate(expected)}
    card = (result.folder / "package" / "README.md").read_text()
    assert "the lowest 0 to 2 layers dropped at random (AdapterDrop): any number of them up to 2 may be skipped" in card
    told = ", ".join(f"{n}: {found['accuracy']:.4f}" for n, found in enumerate(expected))
    assert f"dev accuracy by layers dropped: {told}" in lines(result)


def test_a_fusion_can_be_trained_so_too() -> None:
    made = model()
    made.add_adapter("other", "double_seq_bn[reduction_factor=4]")
    made.add_adapter_fusion(Fuse("mood", "other", name="both"))
    made.train_adapter_fusion(Fuse("mood", "other", name="both"))
    assert plan_drop(made, "random", 0) == Drop(0, 2, 0)


def test_what_a_step_drops_of_a_fusion_is_not_moved_by_its_regulariser() -> None:
    made = model("seq_bn[reduction_factor=4]")
    made.add_adapter("other", "seq_bn[reduction_factor=4]")
    both = Fuse("mood", "other", name="both")
    made.add_adapter_fusion(both)
    made.train_adapter_fusion(both)
    head = made.parts.head("mood")
    head.requires_grad_(True)
    made.train().zero_grad(set_to_none=True)
    made(**tiny.inputs("bert", rows=2), labels=torch.tensor([0, 1]), adapters=both, head="mood",
         skip_layers=[0, 1]).loss.backward()  # fmt: skip
    moved = {
        site: layer.value.weight.grad is not None for site, layer in made.parts.modules_of("fusions", "both").items()
    }
    assert moved == {"layer.0/ffn": False, "layer.1/ffn": False, "layer.2/ffn": True}


def test_texts_that_are_said_skip_nothing() -> None:
    task = task_class("seq2seq_lm")()
    with pytest.raises(AdapterError, match="seq2seq_lm says texts, which run the adapters of all layers; skip none"):
        evaluate(model(family="t5", config="seq_bn"), task, encoder(), [{"text": "a", "target": "b"}],
                 adapters="mood", head="mood", skip_layers=[0])  # fmt: skip


@pytest.mark.full
def test_two_processes_drop_and_see_what_one_does(tmp_path: Path) -> None:
    made = tagging(tmp_path, {"training.drop": "random", "adapter.options": {"shared": True}})
    ran = together([["train", written(made, tmp_path / "made.yaml")]])
    assert ran.codes == [[0], [0]], ran.said
    two, one = check(made), read_result(RunFolder(f"{made.output}-alone"))
    assert two.drop_curve == one.drop_curve
    assert len(two.drop_curve) == 3
    for name in ("grad_down", "grad_up", "up"):
        seen = [[point[name] for point in run.history if "loss" in point] for run in (two, one)]
        assert seen[0] == pytest.approx(seen[1], rel=1e-4)
