"""A new vocabulary for a frozen base computes what a base with that table in its place would."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import BartConfig, BartForConditionalGeneration, LlamaForCausalLM, PreTrainedTokenizerFast

from graftwork.compose.vocabulary import embeddings_of
from graftwork.core.vocabulary import SPREAD, copy_shared, rows_for
from graftwork.errors import AdapterError, Conflict, NotFound, PackageError
from graftwork.model import AdapterModel
from tests import tiny
from tests.adapted import adapted, last, same, snapshot

NEW = tiny.VOCABULARY + 31


class Words:
    """A tokenizer as far as embeddings go."""

    def __init__(self, *tokens: str) -> None:
        self.tokens = tokens

    def get_vocab(self) -> dict[str, int]:
        return {token: number for number, token in enumerate(self.tokens)}


OLD_WORDS = Words(*(f"old{number}" for number in range(tiny.VOCABULARY)))
NEW_WORDS = Words(*(f"old{number}" if number % 3 == 0 else f"new{number}" for number in reversed(range(NEW))))


def speaking(family: str, **options: Any) -> AdapterModel:
    torch.manual_seed(5)
    model = adapted(family)
    model.add_embeddings("new", NEW_WORDS, **options)
    return model


def given(family: str) -> dict[str, Tensor]:
    """Inputs whose ids reach beyond the base's own vocabulary."""
    inputs = tiny.inputs(family)
    for key in ("input_ids", "decoder_input_ids"):
        if key in inputs:
            inputs[key] = (inputs[key] * 7 + 90) % NEW
            assert inputs[key].max() >= tiny.VOCABULARY
    return inputs


def replaced(base: Any, rows: Tensor) -> Any:
    """A copy of a base with another table in every place of its own."""
    own = copy.deepcopy(base)
    table = own.get_input_embeddings().weight
    weight = nn.Parameter(rows.detach().clone(), requires_grad=False)
    for module in own.modules():
        if isinstance(module, nn.Embedding) and module.weight is table:
            module.weight, module.num_embeddings, module.padding_idx = weight, len(rows), None
    return own


@pytest.mark.parametrize("family", ["bert", "electra", "roberta", "llama", "gpt2", "bart", "t5"])
@pytest.mark.parametrize("adapters", [None, "Stack(a, b)", ["a", None]])
def test_what_the_base_with_that_table_computes(family: str, adapters: Any) -> None:
    model, inputs = speaking(family), given(family)
    rows = embeddings_of(model.parts, model.backbone, "new")
    other = AdapterModel(replaced(tiny.model(family), rows)).eval()
    for name in ("a", "b"):
        other.add_adapter(name, "seq_bn[reduction_factor=4]")
    other.load_state_dict({key: value for key, value in model.state_dict().items() if "embeddings" not in key})
    assert torch.equal(last(model(**inputs, adapters=adapters)), last(other(**inputs, adapters=adapters)))


def test_the_scale_of_a_table_is_kept() -> None:
    torch.manual_seed(0)
    config = BartConfig(vocab_size=99, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4,
                        decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, scale_embedding=True,
                        max_position_embeddings=64)  # fmt: skip
    base = BartForConditionalGeneration(config).eval()
    model = AdapterModel(copy.deepcopy(base)).eval()
    model.add_embeddings("new", NEW_WORDS)
    ids = torch.tensor([[5, 120, 100, 2]])
    expected = replaced(base.model, embeddings_of(model.parts, model.backbone, "new"))(input_ids=ids)[0]
    found = model.base.model
    with model.backbone.runtime.running(None, words=embeddings_of(model.parts, model.backbone, "new")):
        assert torch.equal(found(input_ids=ids)[0], expected)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_invertible_adapters_and_prompts_stand_on_the_new_rows(family: str) -> None:
    model, inputs = adapted(family), given(family)
    for name, method in (("i", "seq_bn_inv"), ("p", "prompt_tuning[prompt_length=3]")):
        model.add_adapter(name, method)
    model.add_embeddings("new", NEW_WORDS)
    other = AdapterModel(replaced(tiny.model(family), embeddings_of(model.parts, model.backbone, "new"))).eval()
    other.add_adapter("a", "seq_bn[reduction_factor=4]")
    other.add_adapter("b", "seq_bn[reduction_factor=4]")
    other.add_adapter("i", "seq_bn_inv")
    other.add_adapter("p", "prompt_tuning[prompt_length=3]")
    other.load_state_dict({key: value for key, value in model.state_dict().items() if "embeddings" not in key})
    for name in ("i", "p"):
        assert torch.equal(last(model.eval()(**inputs, adapters=name)), last(other.eval()(**inputs, adapters=name)))


def test_default_is_the_base_and_a_call_may_choose() -> None:
    model, inputs = speaking("bert"), tiny.inputs("bert")
    plain = last(adapted("bert")(**inputs, adapters="a"))
    assert model.active_embeddings == "new"
    assert not torch.allclose(last(model(**inputs, adapters="a")), plain)
    assert torch.equal(last(model(**inputs, adapters="a", embeddings="default")), plain)
    new = last(model(**inputs, adapters="a"))
    model.set_active_embeddings("default")
    assert torch.equal(last(model(**inputs, adapters="a")), plain)
    assert torch.equal(last(model(**inputs, adapters="a", embeddings="new")), new)
    model.set_active_embeddings("new")
    model.delete_embeddings("new")
    assert model.active_embeddings == "default"
    assert torch.equal(last(model(**inputs, adapters="a")), plain)


def test_shared_tokens_begin_as_their_reference_rows() -> None:
    model = speaking("bert", reference_embedding="default", reference_tokenizer=OLD_WORDS)
    rows, own = embeddings_of(model.parts, model.backbone, "new"), model.base.get_input_embeddings().weight
    old, new = OLD_WORDS.get_vocab(), NEW_WORDS.get_vocab()
    shared = [token for token in new if token in old]
    assert len(shared) == 33
    assert all(torch.equal(rows[new[token]], own[old[token]]) for token in shared)
    fresh = rows[[new[token] for token in new if token not in old]]
    assert 0.9 * SPREAD < fresh.std() < 1.1 * SPREAD
    twin = AdapterModel(tiny.model("bert"))
    twin.add_embeddings("again", NEW_WORDS, "default", OLD_WORDS)
    twin.add_embeddings("third", Words("new1", "x"), "again", NEW_WORDS)
    again = embeddings_of(twin.parts, twin.backbone, "again")
    assert torch.equal(embeddings_of(twin.parts, twin.backbone, "third")[0], again[new["new1"]])


def test_the_generator_of_torch_decides() -> None:
    made = []
    for _ in range(2):
        torch.manual_seed(11)
        made.append(rows_for(NEW_WORDS.get_vocab(), 8))
    assert torch.equal(*made)
    assert copy_shared(made[0], {"a": 3, "b": 1}, {"b": 0}, torch.ones(1, 8)) == 1
    assert torch.equal(made[0][1], torch.ones(8))
    assert torch.equal(made[0][3], made[1][3])


def test_only_the_new_rows_train() -> None:
    model = speaking("llama")
    model.add_classification_head("a", num_labels=2)
    before, parts = snapshot(model.base), snapshot(model.parts.adapters)
    model.train_adapter(None, train_embeddings=True)
    inputs = given("llama")
    trained = [key for key, value in model.named_parameters() if value.requires_grad]
    assert [key for key in trained if "heads" not in key] == ["parts.embeddings.=new.=embeddings.weight"]
    model(**inputs, labels=torch.tensor([0, 1]), head="a").loss.backward()
    rows: Any = embeddings_of(model.parts, model.backbone, "new")
    used = torch.zeros(NEW, dtype=torch.bool)
    used[inputs["input_ids"].unique()] = True
    assert (rows.grad[used].abs().sum(dim=1) > 0).all()
    assert not rows.grad[~used].any()
    torch.optim.SGD([rows], lr=1.0).step()
    assert same(before, snapshot(model.base))
    assert same(parts, snapshot(model.parts.adapters))
    assert all(parameter.grad is None for parameter in model.base.parameters())
    model.set_active_embeddings("default")
    with pytest.raises(AdapterError, match="the base's own embeddings are active"):
        model.train_adapter("a", train_embeddings=True)


def test_recomputed_layers_keep_them() -> None:
    grads = []
    for checkpointed in (False, True):
        model = speaking("llama")
        torch.manual_seed(2)
        model.add_classification_head("a", num_labels=2)
        if checkpointed:
            model.gradient_checkpointing_enable()
        model.train_adapter("a", train_embeddings=True)
        model(**given("llama"), labels=torch.tensor([0, 1])).loss.backward()
        grads.append(embeddings_of(model.parts, model.backbone, "new").grad)
    assert torch.equal(grads[0], grads[1])
    model = speaking("llama")
    rows = embeddings_of(model.parts, model.backbone, "new").requires_grad_(True)
    table, ids = model.base.get_input_embeddings(), given("llama")["input_ids"]
    with model.backbone.runtime.running(None, words=rows):
        contexts = model.backbone.runtime.checkpoint_contexts
        found = checkpoint(lambda ids: table(ids).square(), ids, use_reentrant=False, context_fn=contexts)
    found.sum().backward()  # looks up again, when the forward is over
    assert torch.equal(rows.grad[ids[0, 0]], 2 * rows.detach()[ids[0, 0]] * (ids == ids[0, 0]).sum())


def test_generate_reads_the_new_vocabulary() -> None:
    base = LlamaForCausalLM(tiny.model("llama").config).eval()
    model = AdapterModel(copy.deepcopy(base)).eval()
    model.add_embeddings("new", NEW_WORDS)
    own = replaced(base, embeddings_of(model.parts, model.backbone, "new"))
    ids = given("llama")["input_ids"]
    options: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(model.generate(ids, **options), own.generate(ids, **options))
    ids = ids % tiny.VOCABULARY
    assert torch.equal(model.generate(ids, embeddings="default", **options), base.generate(ids, **options))


def test_after_an_error_the_base_speaks_its_own() -> None:
    model, inputs = speaking("bert"), tiny.inputs("bert")
    plain = last(adapted("bert")(**inputs, adapters=None))
    with pytest.raises(IndexError):
        model(input_ids=torch.full((2, 4), NEW), adapters=None)
    assert model.backbone.runtime.words is None
    assert torch.equal(model.base(**inputs)[0], plain)
    assert torch.equal(last(model(**inputs, adapters=None, embeddings="default")), plain)


def test_copies_are_independent() -> None:
    model, inputs = speaking("bart"), given("bart")
    before = last(model(**inputs))
    other = copy.deepcopy(model)
    with torch.no_grad():
        embeddings_of(other.parts, other.backbone, "new").mul_(2.0)
    assert torch.equal(last(model(**inputs)), before)
    assert not torch.allclose(last(other(**inputs)), before)
    other.delete_embeddings("new")
    assert torch.equal(last(model(**inputs)), before)
    assert model.active_embeddings == "new"


def _tokenizer(*words: str) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models

    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)})))


def test_saved_and_read_back_with_the_tokenizer(tmp_path: Path) -> None:
    words = _tokenizer("a", "b", "c")
    model = adapted("bert")
    model.add_embeddings("new", words)
    model.save_embeddings(tmp_path / "e", "new", words)
    model.save_embeddings(tmp_path / "e", "new", words)  # in the place of themselves
    other = adapted("bert")
    assert other.load_embeddings(tmp_path / "e", "again").get_vocab() == words.get_vocab()
    assert other.active_embeddings == "again"
    assert not list(tmp_path.glob(".*"))
    rows = [embeddings_of(*pair) for pair in ((model.parts, model.backbone, "new"),
                                              (other.parts, other.backbone, "again"))]  # fmt: skip
    assert torch.equal(*rows)
    assert not rows[1].requires_grad
    with pytest.raises(AdapterError, match="another vocabulary"):
        model.save_embeddings(tmp_path / "f", "new", _tokenizer("a", "b"))
    assert not (tmp_path / "f").exists()
    _tokenizer("a", "b").save_pretrained(tmp_path / "e" / "tokenizer")
    with pytest.raises(PackageError, match="another vocabulary"):
        other.load_embeddings(tmp_path / "e", "third")
    assert other.active_embeddings == "again"
    assert "third" not in other.parts.vocabularies


def test_embeddings_of_adapterhub(tmp_path: Path) -> None:
    rows = torch.randn(7, tiny.WIDTH)
    torch.save(nn.Parameter(rows, requires_grad=False), tmp_path / "embedding.pt")  # as its save_embeddings does
    _tokenizer("x", "y").save_pretrained(tmp_path / "tokenizer")
    model = adapted("bert")
    assert model.load_embeddings(str(tmp_path), "theirs").get_vocab() == {"x": 0, "y": 1}
    ids = torch.tensor([[0, 6, 3]])
    with model.backbone.runtime.running(None, words=embeddings_of(model.parts, model.backbone, "theirs")):
        assert torch.equal(model.base.get_input_embeddings()(ids), functional.embedding(ids, rows))
    with pytest.raises(Conflict, match="width 32; this base reads width 16"):
        adapted("electra").load_embeddings(tmp_path, "theirs")


def test_what_is_refused(tmp_path: Path) -> None:
    model = speaking("bert")
    model.save_embeddings(tmp_path / "e", "new")
    with pytest.raises(Conflict, match="another base"):
        AdapterModel(tiny.model("bert", seed=9)).load_embeddings(tmp_path / "e", "new")
    with pytest.raises(NotFound):
        model.load_embeddings(tmp_path / "none", "x")
    data = bytearray((tmp_path / "e" / "embeddings.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "e" / "embeddings.safetensors").write_bytes(data)
    with pytest.raises(PackageError, match="sha256"):
        model.load_embeddings(tmp_path / "e", "x")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(Conflict, match="not replaced"):
        model.save_embeddings(tmp_path / "mine", "new")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    for name, options, message in (
        ("default", {}, "already there"), ("new", {}, "already there"),
        ("x", {"embedding_dim": 8}, "reads width 32"), ("x", {"reference_embedding": "default"}, "come together"),
        ("x", {"reference_embedding": "none", "reference_tokenizer": OLD_WORDS}, "no embeddings 'none'"),
        ("x", {"reference_embedding": "default", "reference_tokenizer": NEW_WORDS}, "99 rows"),
    ):  # fmt: skip
        with pytest.raises(AdapterError, match=message):
            model.add_embeddings(name, NEW_WORDS, **options)
    for call in (model.delete_embeddings, model.set_active_embeddings):
        with pytest.raises(AdapterError, match="the embeddings are: default, new"):
            call("other")
    with pytest.raises(AdapterError, match="no embeddings 'other'"):
        model(**tiny.inputs("bert"), embeddings="other")
    with pytest.raises(AdapterError, match="no table of input embeddings"):
        AdapterModel(tiny.model("vit")).add_embeddings("new", NEW_WORDS)
    assert list(model.parts.vocabularies) == ["new"]
