"""AdapterModel: adding, naming, replacing and deleting parts; what is active and what trains; seeds."""

import pytest
import torch

from graftwork.compose.tree import Average, Fuse, Stack
from graftwork.core.heads import HeadConfig
from graftwork.core.kinds import NAMED, AdapterConfig
from graftwork.errors import AdapterError, BackboneError, CompositionError
from graftwork.model import AdapterModel, AutoAdapterModel
from tests import tiny
from tests.adapted import adapted, last, same, shaken, snapshot

# substrings of each other, dots, slashes, versions, and names of torch's attributes, of modules and of our own
AWKWARD = [
    "a",
    "ab",
    "abc",
    "en.v1",
    "en",
    "en.v1.x",
    "hi/ner",
    "hi@3",
    "self_attn",
    "encoder",
    "train",
    "keys",
    "forward",
]
AWKWARD += ["parts", "adapters", "layer", "0", "weight", "training", "items", "down", "a-b", "a_b"]


def test_what_is_wrapped_is_the_callers_own_model() -> None:
    base = tiny.model("bert")
    model = AdapterModel(base)
    assert model.base is base
    assert model.config is base.config
    assert model.device == base.device
    assert model.dtype == base.dtype
    assert not model.training
    assert AdapterModel(tiny.model("bert").train()).training
    assert not any(parameter.requires_grad for parameter in base.parameters())


def test_a_model_that_is_none_is_refused() -> None:
    with pytest.raises(BackboneError, match="the sites of a Linear could not be discovered"):
        AdapterModel(torch.nn.Linear(2, 2))  # type: ignore[arg-type]
    with pytest.raises(BackboneError, match="cannot load '/no/such/folder'"):
        AutoAdapterModel.from_pretrained("/no/such/folder")


def test_the_embedded_encoder_loads_by_name() -> None:
    model = AutoAdapterModel.from_pretrained("minilm", dtype=torch.bfloat16)
    assert (model.config.model_type, model.config.hidden_size, model.dtype) == ("bert", 384, torch.bfloat16)


@pytest.mark.parametrize("awkward", AWKWARD)
def test_a_name_is_only_a_name(awkward: str) -> None:
    model = adapted(adapters=AWKWARD, heads=AWKWARD)
    given = tiny.inputs("bert")
    reference = adapted(adapters=["x"], heads=["x"])
    reference.parts.adapters["=x"].load_state_dict(snapshot(_module(model, "adapters", awkward)))
    reference.parts.heads["=x"].load_state_dict(snapshot(_module(model, "heads", awkward)))
    output = model(**given, adapters=awkward)
    assert torch.equal(output.logits, reference(**given, adapters="x").logits)
    model.train_adapter(awkward)
    trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    own = [*_module(model, "adapters", awkward).parameters(), *_module(model, "heads", awkward).parameters()]
    assert trained == {id(parameter) for parameter in own}


def _module(model: AdapterModel, table: str, name: str) -> torch.nn.Module:
    key = "=" + name.replace(".", "%2E")
    found: torch.nn.Module = getattr(model.parts, table)[key]
    return found


def test_deleting_or_replacing_one_adapter_leaves_the_others_bit_identical() -> None:
    model = adapted(adapters=AWKWARD, heads=AWKWARD)
    given = tiny.inputs("bert")
    before = {
        name: (snapshot(_module(model, "adapters", name)), model(**given, adapters=name).logits) for name in AWKWARD
    }
    for gone in ("a", "en.v1", "train", "hi"):
        if gone in AWKWARD:
            model.delete_adapter(gone)
            model.delete_head(gone)
            del before[gone]
    model.add_adapter("en", "double_seq_bn", overwrite_ok=True)
    del before["en"]
    for name, (weights, logits) in before.items():
        assert same(weights, snapshot(_module(model, "adapters", name)))
        assert torch.equal(logits, model(**given, adapters=name).logits)
    assert "a" not in model.parts.adapter_configs
    assert model.parts.adapter_configs["en"] == NAMED["double_seq_bn"]
    with pytest.raises(AdapterError, match=r"no adapter 'a'; the adapters are: 0, a-b, a_b, ab"):
        model(**given, adapters="a")


def test_a_plan_made_before_a_replacement_is_forgotten() -> None:
    model = adapted(heads=["a"])
    given = tiny.inputs("bert")
    old = model(**given, adapters="a").logits
    model.add_adapter("a", "seq_bn", overwrite_ok=True)
    shaken(_module(model, "adapters", "a"), seed=9)
    new = model(**given, adapters="a").logits
    assert not torch.equal(old, new)
    model.add_classification_head("a", 2, overwrite_ok=True)
    assert not torch.equal(model(**given, adapters="a").logits, new)


@pytest.mark.parametrize("name", ["", "none", "a b", "-a", "a,b", "ä", "a(b)", "../x", 5, None])
def test_what_is_no_name_is_refused(name: str) -> None:
    model = adapted()
    with pytest.raises(CompositionError, match="is not a name: begin with a letter or digit"):
        model.add_adapter(name)
    assert list(model.parts.adapter_configs) == ["a", "b"]


def test_a_head_may_be_called_like_a_fusion_without_a_name() -> None:
    model = adapted()
    model.add_adapter_fusion(Fuse("a", "b"))
    model.add_classification_head("a,b", num_labels=3)
    with pytest.raises(CompositionError, match="'b b' is not a name"):
        model.add_classification_head("a,b b")
    assert model(**tiny.inputs("bert"), adapters=Fuse("a", "b")).logits.shape == (2, 3)


def test_nothing_is_overwritten_unasked() -> None:
    model = adapted(heads=["a"])
    model.add_adapter_fusion("a,b")
    before = snapshot(model)
    with pytest.raises(AdapterError, match="adapter 'a' is already there; choose another name, or pass overwrite_ok"):
        model.add_adapter("a")
    with pytest.raises(AdapterError, match="head 'a' is already there"):
        model.add_regression_head("a")
    with pytest.raises(AdapterError, match="fusion 'a,b' is already there"):
        model.add_adapter_fusion(["a", "b"])
    with pytest.raises(AdapterError, match="adapter 'a' is a member of fusion 'a,b'; delete that first"):
        model.add_adapter("a", overwrite_ok=True)
    assert same(before, snapshot(model))
    model.add_adapter_fusion(["a", "b"], config="static", overwrite_ok=True)
    model.add_regression_head("a", overwrite_ok=True)
    assert model.parts.head_configs["a"].kind == "regression"
    assert not model.parts.fusion_records["a,b"].config.value


def test_what_is_in_use_is_not_deleted() -> None:
    model = adapted(adapters=["a", "b", "c"])
    model.add_adapter_fusion(Fuse("a", "b", name="ab"), set_active=True)
    with pytest.raises(AdapterError, match="adapter 'a' is a member of fusion 'ab'"):
        model.delete_adapter("a")
    with pytest.raises(AdapterError, match="fusion 'ab' is used by the active setup"):
        model.delete_adapter_fusion("ab")
    model.set_active_adapters("a")
    model.delete_adapter_fusion("ab")
    with pytest.raises(AdapterError, match="adapter 'a' is used by the active setup a; change that first"):
        model.delete_adapter("a")
    model.set_active_adapters(None)
    model.delete_adapter("a")
    with pytest.raises(AdapterError, match="no adapter 'a'; the adapters are: b, c"):
        model.delete_adapter("a")
    with pytest.raises(AdapterError, match="no fusion 'ab'; the fusions are: none yet"):
        model.delete_adapter_fusion("ab")
    with pytest.raises(AdapterError, match="no head 'x'; the heads are: none yet"):
        model.delete_head("x")


def test_what_cannot_be_added_leaves_nothing_behind() -> None:
    model = adapted()
    before = snapshot(model)
    with pytest.raises(AdapterError, match="adapter 'c' would have no module at all"):
        model.add_adapter("c", "seq_bn[leave_out=[0,1,2]]")
    with pytest.raises(AdapterError, match="unknown flag 'reduction_facto'; did you mean 'reduction_factor'"):
        model.add_adapter("c", "seq_bn[reduction_facto=4]")
    with pytest.raises(AdapterError, match="fusion configuration 'dynamo' is unknown; there are dynamic, static"):
        model.add_adapter_fusion("a,b", "dynamo")
    with pytest.raises(AdapterError, match="no adapter 'z'; the adapters are: a, b"):
        model.add_adapter_fusion("a,z")
    with pytest.raises(CompositionError, match="is not a fusion"):
        model.add_adapter_fusion(Stack("a", "b"))
    with pytest.raises(AdapterError, match=r"id2label \{1: 'x', 2: 'y'\} must number its labels 0 to 1"):
        model.add_classification_head("c", id2label={1: "x", 2: "y"})
    with pytest.raises(AdapterError, match=r"3 labels \['x', 'y', 'z'\] for 2 outputs"):
        model.add_classification_head("c", id2label={0: "x", 1: "y", 2: "z"})
    with pytest.raises(AdapterError, match="pooling 'max' does not fit kind 'classification'"):
        model.add_classification_head("c", pooling="max")
    assert same(before, snapshot(model))
    assert model.parts.adapter_configs.keys() == {"a", "b"}


def test_adapterhubs_spellings_of_a_configuration_mean_the_same() -> None:
    model = AdapterModel(tiny.model("bert"))
    model.add_adapter("1", config="seq_bn[reduction_factor=2]")
    model.add_adapter("2", config=AdapterConfig.load("pfeiffer", reduction_factor=2))
    model.add_adapter("3", config={"kind": "bottleneck", "original_ln_before": True, "reduction_factor": 2})
    assert len(set(map(str, model.parts.adapter_configs.values()))) == 1
    assert {len(list(_module(model, "adapters", name).parameters())) for name in "123"} == {12}


def test_the_active_setup_is_only_a_default() -> None:
    model = adapted(heads=["a"])
    given = tiny.inputs("bert")
    model.set_active_adapters("a")
    assert torch.equal(model(**given).logits, model(**given, adapters="a").logits)
    stacked = model(**given, adapters=Stack("a", "b"), head="a").logits
    assert model.active_adapters == "a"
    model.active_adapters = ["a", "b"]
    assert model.active_adapters == Stack("a", "b")
    assert torch.equal(model(**given, head="a").logits, stacked)
    model.set_active_adapters("Average(a:0.5, b:0.5)")
    assert model.active_adapters == Average("a", "b", weights=[0.5, 0.5])
    with pytest.raises(AdapterError, match="no adapter 'z'"):
        model.set_active_adapters(Stack("a", "z"))
    with pytest.raises(AdapterError, match=r"no fusion 'a,b' for Fuse\(a, b\); add one with add_adapter_fusion"):
        model.active_adapters = Fuse("a", "b")
    assert model.active_adapters == Average("a", "b", weights=[0.5, 0.5])
    model.add_adapter("c", set_active=True)
    assert model.active_adapters == "c"


def test_without_adapters_the_base_answers_bit_for_bit() -> None:
    given = tiny.inputs("bert")
    plain = tiny.model("bert")(**given)
    model = adapted()
    assert torch.equal(last(model(**given)), last(plain))
    model.set_active_adapters("a")
    assert not torch.equal(last(model(**given)), last(plain))
    for nothing in (None, "none", ["none", None]):
        assert torch.equal(last(model(**given, adapters=nothing)), last(plain))


def test_what_trains() -> None:
    model = adapted(adapters=["l", "t", "u"], heads=["t", "u"])
    model.add_adapter_fusion(Fuse("t", "u", name="tu"))
    model.train_adapter("t")
    assert _training(model) == {"adapters.=t", "heads.=t"}
    assert model.training
    assert model.active_adapters == "t"
    model.train_adapter(["t"])
    model.active_adapters = Stack("l", "t")  # MAD-X: the language adapter stays frozen
    assert _training(model) == {"adapters.=t", "heads.=t"}
    model.train_adapter(Stack("l", "t"))
    assert _training(model) == {"adapters.=l", "adapters.=t", "heads.=t"}
    model.active_head = "u"
    model.train_adapter_fusion(Fuse("t", "u", name="tu"))
    assert _training(model) == {"fusions.=tu", "heads.=u"}
    model.train_adapter_fusion(Stack("l", Fuse("t", "u", name="tu")), unfreeze_adapters=True)
    assert _training(model) == {"adapters.=l", "adapters.=t", "adapters.=u", "fusions.=tu", "heads.=u"}
    model.train_adapter(None)
    assert _training(model) == {"heads.=u"}


def _training(model: AdapterModel) -> set[str]:
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert all(name.startswith("parts.") for name in names)
    return {".".join(name.split(".")[1:3]) for name in names}


@pytest.mark.parametrize("setup", [["t", "u"], "t,u", Fuse("t", "u"), "Fuse(t, u)"])
def test_a_fusion_is_trained_by_any_of_its_spellings(setup: object) -> None:
    model = adapted(adapters=["t", "u"])
    model.add_adapter_fusion(setup)  # type: ignore[arg-type]
    model.train_adapter_fusion(setup)  # type: ignore[arg-type]
    assert model.active_adapters == Fuse("t", "u")
    assert _training(model) == {"fusions.=t,u"}


def test_a_setup_that_cannot_be_trained_changes_nothing() -> None:
    model = adapted(heads=["a"])
    model.train_adapter("a")
    for setup, error, message in [
        ("z", AdapterError, "no adapter 'z'"),
        (Stack("a", "z"), AdapterError, "no adapter 'z'"),
    ]:
        with pytest.raises(error, match=message):
            model.train_adapter(setup)
    with pytest.raises(CompositionError, match=r"Stack\(a, b\) is not a fusion|is not a fusion"):
        model.train_adapter_fusion(Stack("a", "b"))
    with pytest.raises(AdapterError, match="no fusion 'a,b'"):
        model.train_adapter_fusion("a,b")
    model.add_classification_head("other")
    model.active_head = None
    with pytest.raises(
        AdapterError, match=r"which head answers b\? None is named 'b'; say head=... with one of: a, other"
    ):
        model.train_adapter("b")
    assert model.active_adapters == "a"
    model.delete_head("other")
    assert _training(model) == {"adapters.=a", "heads.=a"}


def test_gradients_reach_exactly_what_trains_and_ran() -> None:
    model = adapted(adapters=["a", "b", "c"], heads=["a", "b"])
    model.train_adapter(Stack("a", "b"))
    model(**tiny.inputs("bert"), labels=torch.tensor([0, 1]), adapters=["a", None], head="b").loss.backward()
    reached = {".".join(name.split(".")[1:3]) for name, p in model.named_parameters() if p.grad is not None}
    assert reached == {"adapters.=a", "heads.=b"}


def test_seeds_decide_new_weights() -> None:
    def made() -> AdapterModel:
        torch.manual_seed(11)
        model = AdapterModel(tiny.model("bert"))
        torch.manual_seed(12)
        model.add_adapter("a", "double_seq_bn")
        model.add_classification_head("a")
        model.add_adapter("b", "seq_bn[init_weights_seed=4]")
        return model

    assert same(snapshot(made()), snapshot(made()))


def test_adapter_to_moves_one_adapter() -> None:
    model = adapted()
    given = tiny.inputs("bert")
    expected = last(model(**given, adapters="a"))
    model.adapter_to("a", "cpu", torch.float64)
    assert {parameter.dtype for parameter in _module(model, "adapters", "a").parameters()} == {torch.float64}
    assert {parameter.dtype for parameter in _module(model, "adapters", "b").parameters()} == {torch.float32}
    torch.testing.assert_close(last(model(**given, adapters="a")), expected)
    with pytest.raises(AdapterError, match="no adapter 'z'"):
        model.adapter_to("z", "cpu")


def test_state_dict_holds_adapters_fusions_and_heads_only() -> None:
    model = adapted(heads=["a"])
    model.add_adapter_fusion("a,b")
    state = model.state_dict()
    assert {".".join(key.split(".")[:2]) for key in state} == {"parts.adapters", "parts.fusions", "parts.heads"}
    assert sum(t.numel() for t in state.values()) == sum(p.numel() for p in model.parts.parameters())
    other = adapted(heads=["a"])
    other.add_adapter_fusion("a,b")
    shaken(other.parts, seed=5)
    assert not same(other.state_dict(), state)
    other.load_state_dict(state)
    assert same(other.state_dict(), state)
    assert list(model.state_dict(prefix="model.")) == [f"model.{key}" for key in state]


def test_state_dict_is_strict() -> None:
    model = adapted(heads=["a"])
    state = model.state_dict()
    some = {key: value for key, value in state.items() if "heads" not in key}
    with pytest.raises(RuntimeError, match=r"Missing key.*heads\.=a"):
        model.load_state_dict(some)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*stray"):
        model.load_state_dict({**state, "parts.stray": torch.ones(1)})
    with pytest.raises(RuntimeError, match="size mismatch"):
        model.load_state_dict({key: value[:1] for key, value in state.items()})
    missing, unexpected = model.load_state_dict({**some, "parts.stray": torch.ones(1)}, strict=False)
    assert len(missing) == 4
    assert unexpected == ["stray"]


def test_heads_take_the_dropout_of_the_base_unless_told() -> None:
    model = AdapterModel(tiny.model("bert"))
    model.config.hidden_dropout_prob = 0.3
    model.add_classification_head("a")
    model.add_tagging_head("b", 3, dropout=0.0)
    model.add_regression_head("c", dropout=0.5)
    model.add_head("d", HeadConfig(kind="classification", num_outputs=4, dropout=0.2))
    assert [config.dropout for config in model.parts.head_configs.values()] == [0.3, 0.0, 0.5, 0.2]
    assert [config.pooling for config in model.parts.head_configs.values()] == ["first", "none", "first", "first"]
    assert AdapterModel(tiny.model("llama")).default_pooling == "last"
