"""What other libraries' training does beside what it says: penalties that cannot be switched off, decay of V."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import TrainingArguments

from graftwork.compose.tree import Fuse
from graftwork.core.fusion import FUSIONS
from graftwork.model import AdapterModel
from graftwork.train.trainer import AdapterTrainer
from tests import tiny
from tests.adapted import adapted, same, shaken, snapshot

GIVEN = tiny.inputs("bert")
TREE = Fuse("a", "b", name="f")


def fused(regularised: bool) -> AdapterModel:
    model = adapted()
    model.add_adapter_fusion(TREE, config=replace(FUSIONS["dynamic"], regularization=regularised))
    model.add_classification_head("f", 2, layers=1)
    shaken(model.parts.fusions, seed=2)
    shaken(model.parts.heads, seed=3)
    model.train_adapter_fusion(TREE)
    return model


@pytest.mark.parametrize("regularised", [True, False])
def test_the_penalty_of_a_fusion_is_never_outside_the_loss_and_never_there_unasked(regularised: bool) -> None:
    model = fused(regularised)
    labels = torch.tensor([0, 1])
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    output = model(**GIVEN, labels=labels)
    plain = torch.nn.functional.cross_entropy(output.logits, labels)
    values = [one.value.weight for one in model.parts.modules_of("fusions", "f").values()]  # type: ignore[union-attr]
    penalty = 0.01 * sum(float((torch.eye(tiny.WIDTH) - value.detach()).square().sum()) for value in values)  # type: ignore[operator]
    assert float(output.loss) == pytest.approx(float(plain) + (penalty if regularised else 0.0), rel=1e-5)


def test_weight_decay_never_pulls_the_value_matrix_of_a_fusion_to_zero(tmp_path: Path) -> None:
    model = fused(True)
    settings = TrainingArguments(output_dir=str(tmp_path), weight_decay=0.1, use_cpu=True)
    trainer = AdapterTrainer(model=model, args=settings, train_dataset=[{"input_ids": [1], "labels": 0}])
    decayed = set(trainer.get_decay_parameter_names(model))
    fused_names = {name: one for name, one in model.named_parameters() if ".fusions." in name}
    assert not any(name.endswith("value.weight") for name in decayed & fused_names.keys())
    assert any(name.endswith("query.weight") for name in decayed & fused_names.keys())
    groups = trainer.create_optimizer().param_groups
    values = {id(one) for name, one in fused_names.items() if name.endswith("value.weight")}
    assert len(values) == 3
    assert {group["weight_decay"] for group in groups for one in group["params"] if id(one) in values} == {0.0}


@pytest.mark.parametrize(
    "config", ["seq_bn", "lora", "ia3", "prefix_tuning[bottleneck_size=8]", "seq_bn_inv", "loreft"]
)
def test_training_never_touches_the_base_or_another_adapter(config: str) -> None:
    model = AdapterModel(tiny.model("bert"))
    for name in ("a", "b"):
        model.add_adapter(name, config)
        model.add_classification_head(name, 2)
    shaken(model.parts, seed=3)
    base, other = snapshot(model.base), snapshot(model.parts.adapters["=b"])
    own = snapshot(model.parts.adapters["=a"])
    model.train_adapter("a")
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)  # everything is handed over
    for _ in range(2):
        optimiser.zero_grad()
        model(**GIVEN, labels=torch.tensor([0, 1])).loss.backward()
        optimiser.step()
    assert same(base, snapshot(model.base))
    assert same(other, snapshot(model.parts.adapters["=b"]))
    assert not same(own, snapshot(model.parts.adapters["=a"]))
