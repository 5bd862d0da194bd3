"""AdapterModel over plain torch modules: adapters, heads, rows and packages work on what has no configuration."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from graftwork.core.families import Family, LayerStack, Sublayer
from graftwork.errors import AdapterError, BackboneError, Conflict
from graftwork.model import AdapterModel
from tests import plain
from tests.rig import randomise

IDS = torch.randint(3, 99, (3, 6), generator=torch.Generator().manual_seed(2))
STATES = torch.randn(3, 6, 32, generator=torch.Generator().manual_seed(2))
MASK = torch.tensor([[1] * 6, [1] * 4 + [0] * 2, [1] * 5 + [0]])


def adapted(base: nn.Module) -> AdapterModel:
    """A model with two adapters that matter, and a head for every token."""
    model = AdapterModel(base)
    for name in ("a", "b"):
        model.add_adapter(name, "double_seq_bn[reduction_factor=4,non_linearity=relu]")
    model.add_tagging_head("tags", num_labels=3)
    randomise(model.parts.parameters())
    return model.eval()


def by_hand(model: AdapterModel, block: nn.Module, number: int, x: Tensor, name: str) -> Tensor:
    """One block of the hand-written GPT with a Houlsby adapter: h₀ + A(h₀) + r, twice."""
    for kind, norm, part in (("attn", block.a, block.b), ("ffn", block.c, block.d)):
        site = next(site for site in model.backbone.sites if site.name == f"layer.{number}/{kind}")
        module = model.parts.adapter(name, site.index)
        hidden = part(norm(x))
        x = x + hidden + module.up(torch.relu(module.down(hidden)))
    return x


def test_an_adapted_gpt_computes_the_closed_form_and_its_base_is_untouched() -> None:
    base = plain.gpt()
    pristine, before = plain.gpt(), base(IDS)
    model = adapted(base)
    with torch.no_grad():
        assert torch.equal(model(input_ids=IDS, head="none"), before)
        x = base.tokens(IDS) + base.places(torch.arange(6))
        for number, block in enumerate(base.blocks):
            x = by_hand(model, block, number, x, "a")
        torch.testing.assert_close(
            model(input_ids=IDS, adapters="a", head="none"), base.vocabulary(base.final(x)), rtol=1e-5, atol=1e-5
        )
        tags = model.parts.head("tags")
        torch.testing.assert_close(
            model(input_ids=IDS, adapters="a", head="tags").logits, tags(base.final(x)), rtol=1e-5, atol=1e-5
        )
    assert all(torch.equal(one, other) for one, other in zip(base.parameters(), pristine.parameters(), strict=True))
    assert list(base.state_dict()) == list(pristine.state_dict())


def test_rows_of_a_batch_have_adapters_of_their_own() -> None:
    model = adapted(plain.encoder())
    with torch.no_grad():
        mixed = model(inputs_embeds=STATES, attention_mask=MASK, adapters=["a", None, "b"], head="tags").logits
        alone = [
            model(inputs_embeds=STATES[i : i + 1], attention_mask=MASK[i : i + 1], adapters=name, head="tags").logits
            for i, name in enumerate(["a", None, "b"])
        ]
    torch.testing.assert_close(mixed, torch.cat(alone), rtol=1e-5, atol=1e-5)
    assert (mixed[0] - model(inputs_embeds=STATES, attention_mask=MASK, head="tags").logits[0]).abs().max() > 0.01


@pytest.mark.parametrize("nested", [False, True])
def test_torchs_fused_path_cannot_step_over_adapters(nested: bool) -> None:
    base = plain.encoder(nested=nested)
    model = adapted(base)
    padding = MASK == 0
    with torch.enable_grad():
        slow = model(inputs_embeds=STATES, attention_mask=MASK, adapters="a", head="none")
    with torch.no_grad():
        fast = model(inputs_embeds=STATES, attention_mask=MASK, adapters="a", head="none")
        bare = base(STATES, src_key_padding_mask=padding)
    torch.testing.assert_close(fast[~padding], slow[~padding], rtol=1e-5, atol=1e-5)
    assert (fast - bare)[~padding].abs().max() > 0.01


def test_only_the_adapter_and_its_head_train() -> None:
    model = AdapterModel(plain.encoder(norm_first=True))
    model.add_adapter("a")
    model.add_classification_head("a", num_labels=2)
    model.train_adapter("a")
    model.train()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    losses = []
    for _ in range(20):
        loss = model(inputs_embeds=STATES, labels=torch.tensor([0, 1, 1]), adapters="a", head="a").loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved
    assert all(name.startswith("parts.") for name in moved)


def test_packages_know_the_module_they_were_trained_on(tmp_path: Path) -> None:
    model = adapted(plain.gpt())
    model.save_adapter(tmp_path / "a", "a")
    again = AdapterModel(plain.gpt())
    again.load_adapter(tmp_path / "a")
    with torch.no_grad():
        given, wanted = (m(input_ids=IDS, adapters="a", head="none") for m in (again, model))
    assert torch.equal(given, wanted)
    with pytest.raises(Conflict):
        AdapterModel(plain.gpt(expanded=48)).load_adapter(tmp_path / "a")


def test_a_module_that_computes_another_function_of_the_same_weights_is_another_base() -> None:
    names = [AdapterModel(plain.encoder(activation=name)).backbone.fingerprint for name in ("relu", "gelu", "relu")]
    assert names[0] == names[2] != names[1]
    assert AdapterModel(plain.encoder(norm_first=True)).backbone.fingerprint != names[0]


def test_inputs_that_the_module_does_not_take_are_refused() -> None:
    model = adapted(plain.gpt())
    with pytest.raises(AdapterError, match=r"takes no attention_mask; leave it out. It takes: input_ids"):
        model(input_ids=IDS, attention_mask=MASK)
    with pytest.raises(AdapterError, match="takes one of input_ids and inputs_embeds, as 'ids'"):
        model(input_ids=IDS, inputs_embeds=STATES, head="none")


def test_a_description_by_hand_takes_the_place_of_discovery() -> None:
    sites = (Sublayer("ffn", "d.narrow", "c", argument=(0, "x")),)
    model = AdapterModel(plain.gpt(), Family(("mine",), (LayerStack("", "blocks", sites),), causal=True))
    assert [site.name for site in model.backbone.sites if site.place == "sublayer"] == [
        f"layer.{number}/ffn" for number in range(3)
    ]
    with pytest.raises(BackboneError, match="nothing ran at 'layers'"):
        AdapterModel(plain.gpt(), Family(("mine",), (LayerStack("", "layers", sites),)))
