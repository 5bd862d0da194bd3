"""Rows that prompts made longer: what points into a text is moved along, whatever prompts its neighbours have."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from graftwork.compose.places import labels_at
from graftwork.core.heads_parsing import words_of
from graftwork.model import AdapterModel
from tests import tiny
from tests.adapted import shaken

IDS = torch.tensor([[3, 9, 14, 5, 7, 2], [3, 8, 4, 6, 1, 1]])
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
ROWS = {"three": 3, "two": 2, None: 0}


def prompted(combine: str) -> AdapterModel:
    model = AdapterModel(tiny.model("bert"))
    for name, length in (("three", 3), ("two", 2)):
        model.add_adapter(name, f"prompt_tuning[prompt_length={length},combine={combine}]")
    model.add_qa_head("span")
    model.add_tagging_head("tags", num_labels=4)
    model.add_dependency_parsing_head("parse", num_labels=3)
    shaken(model.parts, 4)
    return model.eval()


def where(combine: str, length: int, place: int) -> int:
    """The place of a token behind a prompt, as the two ways to combine say it."""
    return place if combine == "prefix_after_bos" and place == 0 else place + length


@pytest.mark.parametrize("combine", ["prefix", "prefix_after_bos"])
@pytest.mark.parametrize("name", ROWS)
def test_an_answer_is_learned_where_the_prompt_has_moved_it(combine: str, name: str | None) -> None:
    model, labels = prompted(combine), torch.tensor([[2, 4], [0, 3]])
    output = model(IDS, MASK, labels=labels, adapters=name, head="span")
    length = ROWS[name]
    assert output.start_logits.shape == (2, 6 + length)
    moved = torch.tensor([[where(combine, length, int(place)) for place in row] for row in labels])
    expected = cross_entropy(output.start_logits, moved[:, 0]) + cross_entropy(output.end_logits, moved[:, 1])
    torch.testing.assert_close(output.loss, expected / 2)


@pytest.mark.parametrize("combine", ["prefix", "prefix_after_bos"])
@pytest.mark.parametrize("head", ["span", "tags", "parse"])
def test_rows_with_different_prompts_learn_and_answer_as_they_do_alone(combine: str, head: str) -> None:
    model = prompted(combine)
    ids, mask, names = IDS[[0, 1, 0]], MASK[[0, 1, 0]], list(ROWS)
    more = {}
    if head == "span":
        labels = torch.tensor([[1, 2], [0, 3], [5, 5]])
    elif head == "tags":
        labels = torch.tensor([[0, 1, 2, 3, 0, 1], [-100, 1, 2, 3, -100, -100], [3, 2, 1, 0, 1, 2]])
    else:
        labels = torch.tensor([[[0, 1], [1, 2]], [[2, 0], [0, 1]], [[0, 1], [1, 2]]])
        more["word_starts"] = torch.tensor([[1, 3, 6], [1, 2, 4], [1, 3, 6]])
    together = model(ids, mask, labels=labels, adapters=names, head=head, **more)
    losses, weights = [], []
    for row, name in enumerate(names):
        own = {key: value[row : row + 1] for key, value in more.items()}
        alone = model(ids[row : row + 1], mask[row : row + 1], labels=labels[row : row + 1], adapters=name, head=head,
                      **own)  # fmt: skip
        losses.append(alone.loss)
        weights.append(int((labels[row] != -100).sum()))
        found, expected = together.groups[0].text_logits[row], alone.groups[0].text_logits[0]
        if head == "parse":
            found, expected = found[:2, :3], expected[:2, :3]
        else:
            assert found.shape[0] == 6
            found, expected = found[mask[row].bool()], expected[mask[row].bool()]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    parts = torch.tensor(weights, dtype=torch.float32) / sum(weights)
    if head == "tags":  # the others' losses compare all T' places, of which there are more beside a longer prompt
        torch.testing.assert_close(together.loss, (parts * torch.stack(losses)).sum(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("combine", ["prefix", "prefix_after_bos"])
def test_words_are_read_where_the_prompt_has_moved_them(combine: str) -> None:
    model, starts = prompted(combine), torch.tensor([[1, 3, 6], [1, 2, 4]])
    seen: list[Tensor] = []
    head = model.parts.head("parse")
    head.dropout.register_forward_hook(lambda _, __, hidden: seen.append(hidden))
    arcs = model(IDS, MASK, word_starts=starts, adapters="three", head="parse").arc_preds
    hidden = seen[0].detach()
    words = words_of(hidden, starts + 3)
    places = torch.cat((hidden[:, :1], words), dim=1)
    torch.testing.assert_close(arcs, head.biaffine_arcs(words, places)[..., 0])
    assert float(words[0, 1].sub(hidden[0, 6:9].mean(0)).abs().max()) < 1e-5


def test_labels_of_rows_stay_and_no_label_is_taken_for_another_kind() -> None:
    places = torch.tensor([[3, 4], [3, 4]])
    labels = torch.tensor([[0, 1], [1, 0]])
    assert torch.equal(labels_at("multilabel_classification", labels, places, 5), labels)
    assert labels_at("question_answering", labels, places, 5).tolist() == [[3, 4], [4, 3]]
    assert labels_at("tagging", labels, places, 5).tolist() == [[-100] * 3 + [0, 1], [-100] * 3 + [1, 0]]
    assert labels_at("question_answering", torch.tensor([[-1, 7], [0, 2]]), places, 5).tolist() == [
        [-100, -100],
        [3, -100],
    ]


def test_the_end_of_a_sequence_is_found_behind_a_prompt() -> None:
    model = AdapterModel(tiny.model("llama"))
    model.base.config.eos_token_id = 2
    model.add_adapter("a", "prompt_tuning[prompt_length=3]")
    model.add_classification_head("a", num_labels=2, pooling="eos")
    shaken(model.parts, 4)
    model.eval()
    whole = model(IDS[:1], MASK[:1], adapters="a", head="none")[0]
    expected = model.parts.head("a").layers(whole[:, 8])
    torch.testing.assert_close(model(IDS[:1], MASK[:1], adapters="a").logits, expected)
