"""What training keeps of the forward, counted where autograd saves it: numbers a token, parameters left out.

An adapter keeps what its two matrices were multiplied with: D numbers that it reads and M that its ReLU says. The rest
is the frozen base's, from the lowest adapter upwards: what lies below keeps nothing.
"""

import pytest
import torch
from transformers import BertConfig, BertModel

from graftwork.model import AdapterModel

ROWS, TOKENS, LAYERS, D = 2, 8, 4, 64
PER_LAYER = ("seq_bn[reduction_factor=16]", 4), ("seq_bn[reduction_factor=2]", 32)


def kept(config: str | None) -> int:
    """Bytes that one forward in training keeps, with one adapter trained, or the whole base for None."""
    torch.manual_seed(0)
    shape = {"hidden_size": D, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "intermediate_size": 4 * D}
    base = BertModel(BertConfig(vocab_size=50, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **shape))
    model = AdapterModel(base)
    if config is None:
        base.requires_grad_(True)
    else:
        model.add_adapter("a", config)
        model.train_adapter("a")
    owned = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    saved: dict[int, torch.Tensor] = {}

    def save(tensor: torch.Tensor) -> torch.Tensor:
        saved.setdefault(tensor.untyped_storage().data_ptr(), tensor)  # held, so that no address comes twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        ids = torch.randint(5, 50, (ROWS, TOKENS), generator=torch.Generator().manual_seed(1))
        model(input_ids=ids, adapters=None if config is None else "a", head="none")
    return sum(one.untyped_storage().nbytes() for place, one in saved.items() if place not in owned)


def a_token(size: int) -> float:
    """Bytes as float32 numbers for each token."""
    return size / (4 * ROWS * TOKENS)


def test_the_width_of_an_adapter_costs_its_width_a_token_and_layer() -> None:
    (narrow, few), (wide, many) = PER_LAYER
    assert a_token(kept(wide)) - a_token(kept(narrow)) == LAYERS * (many - few)


def test_an_adapter_keeps_what_it_reads_and_the_frozen_layer_keeps_more() -> None:
    last, last_two = (kept(f"seq_bn[leave_out={list(range(LAYERS - trained))}]") for trained in (1, 2))
    a_layer, own = a_token(last_two) - a_token(last), D + 4
    assert a_token(last) < 3 * own  # its own, the sum before the norm, and the norm's two numbers
    assert own / a_layer < 0.2
    assert a_layer > 5 * D  # what the frozen layer above an adapter keeps to hand gradients down


def test_layers_below_the_lowest_adapter_keep_nothing() -> None:
    sizes = [kept(f"seq_bn[leave_out={list(range(left))}]") for left in range(LAYERS)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 0.05 * kept(None)


@pytest.mark.parametrize("config", ["seq_bn", "double_seq_bn"])
def test_less_is_kept_than_for_training_everything(config: str) -> None:
    assert kept(config) < 0.7 * kept(None)
