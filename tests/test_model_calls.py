"""One call at a time, whatever the base: inputs that fit or are refused, kinds of base, threads, copies, failures."""

import copy
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertForMaskedLM, BertForSequenceClassification, GPT2LMHeadModel, T5ForConditionalGeneration

from graftwork.compose.tree import Parallel, Split, Stack
from graftwork.errors import AdapterError, BackboneError, CompositionError, RoutingError
from graftwork.model import AdapterModel
from tests import tiny, zoo
from tests.adapted import adapted, last, same, shaken, snapshot
from tests.rig import randomise

GIVEN = tiny.inputs("bert")


# -- inputs -----------------------------------------------------------------------------------------------------------


def test_an_unknown_keyword_is_refused_by_the_signature() -> None:
    model = adapted(heads=["a"])
    with pytest.raises(TypeError, match="unexpected keyword argument 'adapter_names'"):
        model(**GIVEN, adapter_names=["a", "b"])
    with pytest.raises(TypeError, match="unexpected keyword argument 'num_items_in_batch'"):
        model(**GIVEN, num_items_in_batch=2)


@pytest.mark.parametrize(
    ("family", "name"),
    [
        *((family, "token_type_ids") for family in ("t5", "bart", "vit", "llama", "mistral", "qwen3", "distilbert")),
        *((family, "position_ids") for family in ("t5", "bart", "vit")),
        *((family, "decoder_input_ids") for family in ("bert", "llama")),
    ],
)
@pytest.mark.parametrize("head", ["a", "none"])
def test_an_input_that_the_base_would_swallow_is_refused(family: str, name: str, head: str) -> None:
    model = adapted(family, adapters=["a"], heads=["a"])
    given = tiny.inputs(family)
    model(**given, adapters="a", head=head)
    given[name] = torch.zeros(2, 7, dtype=torch.long)
    with pytest.raises(AdapterError, match=f"{type(model.base).__name__} takes no {name}; leave it out. It takes: "):
        model(**given, adapters="a", head=head)


def test_labels_without_a_head_are_refused_where_the_base_has_no_loss() -> None:
    model = adapted()
    with pytest.raises(AdapterError, match="BertModel takes no labels; leave it out"):
        model(**GIVEN, adapters="a", labels=torch.tensor([0, 1]))
    masked = AdapterModel(BertForMaskedLM(tiny.model("bert").config).eval())
    masked.add_adapter("a")
    assert masked(**GIVEN, adapters="a", labels=GIVEN["input_ids"]).loss > 0


def test_forward_needs_inputs() -> None:
    model = adapted(heads=["a"])
    with pytest.raises(AdapterError, match="forward needs inputs: one of input_ids, inputs_embeds, pixel_values"):
        model(labels=torch.tensor([0]))
    with pytest.raises(AdapterError, match="forward needs inputs"):
        model(attention_mask=torch.ones(2, 7))


def test_embeddings_stand_for_ids() -> None:
    model = adapted(heads=["a"])
    embeds = model.base.embeddings.word_embeddings(GIVEN["input_ids"])
    positions = torch.arange(7)[None]
    expected = model(**GIVEN, adapters=["a", None], head="a").logits
    assert torch.equal(
        model(inputs_embeds=embeds, position_ids=positions, adapters=["a", None], head="a").logits, expected
    )


def test_further_arguments_of_the_base_go_through_extra() -> None:
    model = adapted("bert-decoder", adapters=["a"], heads=["a"])
    given = tiny.inputs("bert-decoder")
    read = given.pop("encoder_hidden_states")
    plain = model(**given, adapters="a").logits
    assert not torch.equal(model(**given, adapters="a", extra={"encoder_hidden_states": read}).logits, plain)
    refused = {
        "BertModel takes no encoder_hidden_state; leave it out": {"encoder_hidden_state": read},
        "BertModel takes no return_dict": {"return_dict": False},
        "extra holds 'attention_mask', which is an argument of its own": {"attention_mask": torch.ones(2, 7)},
        "extra holds 'output_attentions', which is an argument of its own": {"output_attentions": True},
    }
    for message, extra in refused.items():
        with pytest.raises(AdapterError, match=message):
            model(**given, adapters="a", extra=extra)
    seen = torch.ones(2, read.shape[1], dtype=torch.long)
    seen[1, 2:] = 0
    extra = {"encoder_hidden_states": read, "encoder_attention_mask": seen}
    both = model(**given, adapters=Parallel("a", None), head="a", extra=extra).logits
    for rows, name in ((both[:2], "a"), (both[2:], None)):
        torch.testing.assert_close(rows, model(**given, adapters=name, head="a", extra=extra).logits)
    with pytest.raises(AdapterError, match=r"'encoder_hidden_states' of shape \(3, .* no row for each of the 2 rows"):
        model(**given, adapters=Parallel("a", "a"), extra={"encoder_hidden_states": read[[0, 1, 1]]})


@pytest.mark.parametrize("family", ["whisper", "wav2vec2", "hubert"])
def test_sound_is_counted_and_repeated_as_text_is(family: str) -> None:
    model = AdapterModel(zoo.model(family))
    for name in ("a", "b"):
        model.add_adapter(name, "seq_bn[reduction_factor=4]")
    model.add_classification_head("h", num_labels=3)
    randomise(model.parts.parameters())
    model.eval()
    given = zoo.inputs(family)
    both = model(**given, adapters=Parallel("a", "b"), head="h").logits
    mixed = model(**given, adapters=["b", None], head="h").logits
    a, b, none = (model(**given, adapters=name, head="h").logits for name in ("a", "b", None))
    torch.testing.assert_close(both, torch.cat([a, b]))
    torch.testing.assert_close(mixed, torch.stack([b[0], none[1]]))
    assert not torch.allclose(a, b)


@pytest.mark.parametrize("family", ["wav2vec2", "hubert"])
def test_heads_read_the_frames_that_are_real_not_the_samples(family: str) -> None:
    """60 samples are 14 frames, the first 32 of them 7: what stands for a row is found among these."""
    model, samples = AdapterModel(zoo.model(family)).eval(), zoo.inputs(family)["input_values"]
    mask = (torch.arange(60) < torch.tensor([[60], [32]])).long()
    frames = model(input_values=samples, attention_mask=mask).last_hidden_state
    for pooling, expected in (
        ("last", torch.stack([frames[0, 13], frames[1, 6]])),
        ("mean", torch.stack([frames[0].mean(0), frames[1, :7].mean(0)])),
    ):
        model.add_classification_head(pooling, num_labels=3, pooling=pooling, layers=1)
        linear = next(module for module in model.parts.head(pooling).modules() if isinstance(module, nn.Linear))
        found = model(input_values=samples, attention_mask=mask, adapters=None, head=pooling).logits
        torch.testing.assert_close(found, linear(expected))


def test_a_prompt_of_an_encoder_is_no_part_of_what_its_decoder_reads() -> None:
    model, given = AdapterModel(tiny.model("t5")).eval(), tiny.inputs("t5")
    ids, mask = given["input_ids"], (torch.arange(7) < torch.tensor([[7], [4]])).long()
    model.add_adapter("a", "prompt_tuning[prompt_length=3]")
    model.add_classification_head("h", num_labels=3, pooling="last", layers=1)
    linear = next(module for module in model.parts.head("h").modules() if isinstance(module, nn.Linear))
    found = model(input_ids=ids, attention_mask=mask, adapters="a", head="h").logits
    shifted = model.base._shift_right(ids)
    read = model(input_ids=ids, attention_mask=mask, decoder_input_ids=shifted, adapters="a", head="none")[0]
    torch.testing.assert_close(found, linear(torch.stack([read[0, 6], read[1, 3]])))


def test_a_route_that_does_not_fit_the_batch_is_refused() -> None:
    model = adapted()
    with pytest.raises(CompositionError, match="Split covers 5 tokens, but the sequence at this site has 7"):
        model(**GIVEN, adapters=Split("a", "b", splits=[2, 3]))
    with pytest.raises(CompositionError, match="adapters= names 1 compositions for a batch of 2 rows"):
        model(**GIVEN, adapters=["a"])
    assert torch.equal(last(model(**GIVEN)), last(tiny.model("bert")(**GIVEN)))


# -- kinds of base ----------------------------------------------------------------------------------------------------


def _lm(kind: type[Any], family: str) -> Any:
    torch.manual_seed(0)
    made = kind(tiny.model(family).config)
    return made.eval()


@pytest.mark.parametrize(
    ("kind", "family"), [(BertForMaskedLM, "bert"), (GPT2LMHeadModel, "gpt2"), (T5ForConditionalGeneration, "t5")]
)
def test_a_base_with_tied_weights(kind: type[Any], family: str) -> None:
    base = _lm(kind, family)
    before, names = snapshot(base), [name for name, _ in base.named_modules()]
    given = tiny.inputs(family)
    with torch.no_grad():  # whether gradients are wanted moves the last bit
        plain = base(**given).logits
    model = AdapterModel(base)
    model.add_adapter("a", "double_seq_bn")
    model.add_classification_head("a")
    shaken(model.parts, seed=4)
    model.set_active_adapters("a")
    assert model(**given, head="none").logits.shape == plain.shape
    assert not torch.equal(model(**given, head="none").logits, plain)
    with torch.no_grad():
        assert torch.equal(model(**given, adapters=None, head="none").logits, plain)
    labels = given["input_ids"] if family != "t5" else given["decoder_input_ids"]
    model.train_adapter("a")
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(**given, labels=labels, head="none").loss.backward()
    optimiser.step()
    assert same(before, snapshot(base))
    assert [name for name, _ in base.named_modules()] == names
    tied = base.get_output_embeddings().weight
    assert tied is base.get_input_embeddings().weight
    assert len({id(p) for p in model.parameters()}) == len(list(model.parameters()))
    if family == "t5":  # its trunk is the model itself, which says words, not hidden states
        with pytest.raises(BackboneError, match="gives no hidden states to a head of ours: load the model without its"):
            model(**given)
    else:
        assert model(**given).logits.shape == (2, 2)


def test_the_base_may_have_a_head_of_its_own() -> None:
    base = BertForSequenceClassification(tiny.model("bert").config).eval()
    model = AdapterModel(base)
    model.add_adapter("a")
    shaken(model.parts, seed=4)
    output = model(**GIVEN, adapters="a", labels=torch.tensor([0, 1]))
    assert output.logits.shape == (2, 2)
    assert output.loss > 0
    assert not torch.equal(output.logits, base(**GIVEN).logits)


def test_adapters_follow_the_type_of_a_bfloat16_base() -> None:
    model = AdapterModel(tiny.model("llama").to(torch.bfloat16))
    model.add_adapter("a")
    model.add_adapter("b", "double_seq_bn")
    model.add_classification_head("a")
    model.add_adapter_fusion("a,b")
    shaken(model.parts, seed=4)
    assert {parameter.dtype for parameter in model.parts.parameters()} == {torch.bfloat16}
    given = tiny.inputs("llama")
    output = model(**given, adapters="a", labels=torch.tensor([0, 1]))
    assert output.logits.dtype == torch.bfloat16
    assert output.loss.dtype == torch.float32
    full = AdapterModel(tiny.model("llama"))
    full.add_adapter("a")
    full.add_adapter("b", "double_seq_bn")
    full.add_classification_head("a")
    full.add_adapter_fusion("a,b")
    full.load_state_dict({key: value.float() for key, value in model.state_dict().items()})
    for tree in ("a", "Stack(a, b)", "Fuse(a, b)"):
        wide = full(**given, adapters=tree, head="a").logits
        torch.testing.assert_close(model(**given, adapters=tree, head="a").logits.float(), wide, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("family", ["bert", "llama", "t5"])
def test_recomputed_activations_give_the_same_gradients(family: str) -> None:
    def gradients(checkpointed: bool) -> list[Tensor]:
        model = adapted(family, heads=["a", "b"])
        model.train_adapter(Stack("a", "b"))
        if checkpointed:
            model.gradient_checkpointing_enable()
        model.base.config.use_cache = False
        given = tiny.inputs(family)
        loss = model(**given, adapters=["a", Stack("a", "b")], labels=torch.tensor([0, 1])).loss
        model(**given, adapters="b", labels=torch.tensor([0, 1]))  # another route between forward and backward
        loss.backward()
        return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]

    plain, recomputed = gradients(False), gradients(True)
    assert len(plain) > 20
    torch.testing.assert_close(recomputed, plain, rtol=1e-5, atol=1e-7)


def test_reentrant_checkpointing_is_refused() -> None:
    model = adapted()
    with pytest.raises(AdapterError, match="use_reentrant=True and context_fn are not possible here"):
        model.gradient_checkpointing_enable({"use_reentrant": True})


# -- copies -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_is_whole_and_apart(copied: Callable[[AdapterModel], AdapterModel]) -> None:
    model = adapted(heads=["a", "b"])
    model.add_adapter_fusion("a,b")
    model.set_active_adapters("a")
    expected = model(**GIVEN, adapters=["a", Stack("a", "b")]).groups
    twin = copied(model)
    for ours, theirs in zip(expected, twin(**GIVEN, adapters=["a", Stack("a", "b")]).groups, strict=True):
        assert torch.equal(ours.logits, theirs.logits)
    assert twin.active_adapters == "a"
    assert same(snapshot(model), snapshot(twin))
    assert same(model.base.state_dict(), twin.base.state_dict())
    assert not {id(p) for p in model.parameters()} & {id(p) for p in twin.parameters()}
    before = model(**GIVEN).logits
    shaken(twin, seed=5)
    twin.delete_adapter_fusion("a,b")
    twin.set_active_adapters("b")
    twin.delete_adapter("a")
    assert torch.equal(model(**GIVEN).logits, before)
    with pytest.raises(AdapterError, match="no adapter 'a'"):
        twin(**GIVEN, adapters="a")


# -- isolation --------------------------------------------------------------------------------------------------------


class _Fails(nn.Module):
    """Stands in a layer and raises when it is told to."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.fails = inner, False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.fails:
            raise ValueError("in the middle of a forward")
        return self.inner(*args, **kwargs)


def test_an_exception_in_mid_forward_leaves_nothing_behind() -> None:
    model = adapted(heads=["a"])
    plain = last(model(**GIVEN, head="none"))
    expected = model(**GIVEN, adapters="a").logits
    layer = model.base.encoder.layer[1]
    layer.intermediate = broken = _Fails(layer.intermediate)
    broken.fails = True
    for _ in range(2):
        with pytest.raises(ValueError, match="in the middle of a forward"):
            model(**GIVEN, adapters="a")
    broken.fails = False
    runtime = model.backbone.runtime
    assert (runtime.route, runtime.residuals, runtime.pending) == (None, {}, {})
    assert torch.equal(last(model(**GIVEN, head="none")), plain)
    assert torch.equal(last(model.base(**GIVEN)), plain)  # nor is the bare base answered with an adapter
    three = tiny.inputs("bert", rows=3)
    assert torch.equal(last(model(**three, head="none")), last(tiny.model("bert")(**three)))
    assert torch.equal(model(**GIVEN, adapters="a").logits, expected)


def test_a_forward_inside_a_forward_is_refused() -> None:
    model = adapted(heads=["a"])

    def inner(*_: Any) -> None:
        model(**GIVEN, adapters="b", head="none")

    handle = model.base.encoder.layer[2].register_forward_hook(inner)
    with pytest.raises(RoutingError, match="already running a forward in this thread; its routes cannot nest"):
        model(**GIVEN, adapters="a")
    handle.remove()
    assert torch.equal(model(**GIVEN, adapters="a").logits, adapted(heads=["a"])(**GIVEN, adapters="a").logits)


def test_threads_with_different_adapters_do_not_meet() -> None:
    model = adapted(adapters=["a", "b", "c"], heads=["a", "b", "c"])
    batches = [tiny.inputs("bert", rows=rows, seed=rows) for rows in (1, 2, 3)]
    work = [(name, batch) for name in "abc" for batch in batches]
    with torch.no_grad():
        expected = {at: model(**batch, adapters=name).logits for at, (name, batch) in enumerate(work)}
    wrong: list[str] = []

    def run(start: int) -> None:
        for turn in range(60):
            at = (start + turn) % len(work)
            name, batch = work[at]
            with torch.no_grad():
                if not torch.equal(model(**batch, adapters=name).logits, expected[at]):
                    wrong.append(name)

    threads = [threading.Thread(target=run, args=(start,)) for start in (0, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
