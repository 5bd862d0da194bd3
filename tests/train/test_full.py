"""Full fine-tuning: a copy learns, the model that was given does not, and a checkpoint holds everything once."""

import torch

from graftwork.build import add_task_head
from graftwork.model import AdapterModel
from graftwork.tasks.classify import Classification
from graftwork.train.full import FullModel
from tests import tiny


def made(family: str = "bert") -> tuple[AdapterModel, FullModel]:
    model = AdapterModel(tiny.model(family))
    add_task_head(model, Classification(("a", "b"), 32), "x")
    return model, FullModel(model, "x").eval()


def test_it_begins_as_the_model_and_moves_away_alone() -> None:
    model, full = made()
    inputs = tiny.inputs("bert")
    before = {name: value.clone() for name, value in model.base.state_dict().items()}
    frozen = model.eval()(**inputs, adapters=None, head="x").logits
    assert torch.equal(full(**inputs).logits, frozen)
    optimizer = torch.optim.SGD(full.parameters(), lr=0.1)
    full(**inputs, labels=torch.tensor([0, 1])).loss.backward()
    optimizer.step()
    assert not torch.equal(full(**inputs).logits, frozen)
    assert torch.equal(model(**inputs, adapters=None, head="x").logits, frozen)
    assert all(torch.equal(value, before[name]) for name, value in model.base.state_dict().items())
    assert not any(parameter.requires_grad for parameter in model.base.parameters())


def test_a_checkpoint_holds_every_parameter_once_tied_ones_too() -> None:
    _, full = made("t5")
    state = full.state_dict()
    assert len({value.data_ptr() for value in state.values()}) == len(state)
    assert sum(value.numel() for value in state.values()) == sum(p.numel() for p in full.parameters())
    kept = {name: value.clone() for name, value in state.items()}
    inputs = tiny.inputs("t5")
    expected = full(input_ids=inputs["input_ids"]).logits
    with torch.no_grad():
        for parameter in full.parameters():
            parameter.add_(1.0)
    assert not torch.equal(full(input_ids=inputs["input_ids"]).logits, expected)
    loaded = full.load_state_dict(kept)
    assert (loaded.missing_keys, loaded.unexpected_keys) == ([], [])
    assert torch.equal(full(input_ids=inputs["input_ids"]).logits, expected)


def test_what_is_missing_or_too_much_is_said() -> None:
    _, full = made()
    state = full.state_dict()
    first = next(iter(state))
    loaded = full.load_state_dict(
        {**{key: value for key, value in state.items() if key != first}, "else": state[first]}
    )
    assert (loaded.missing_keys, loaded.unexpected_keys) == ([first], ["else"])
