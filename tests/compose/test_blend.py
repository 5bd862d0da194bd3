"""Averages of adapters and heads: their weights by formula, what they are not, and what is refused."""

from typing import Any

import pytest
import torch
from torch import Tensor

from graftwork.compose.tree import Average
from graftwork.core.blend import ties
from graftwork.errors import AdapterError, CompositionError
from graftwork.model import AdapterModel
from graftwork.registry.package import read
from tests import tiny
from tests.adapted import adapted, last, same, shaken, snapshot
from tests.rig import relative

NONLINEAR = "seq_bn[reduction_factor=4]"


def made(config: str = NONLINEAR, names: str = "abc", family: str = "bert", **own: str) -> AdapterModel:
    model = AdapterModel(tiny.model(family))
    for seed, name in enumerate(names):
        model.add_adapter(name, own.get(name, config))
        for module in model.parts.modules_of("adapters", name).values():
            shaken(module, seed)
    return model.eval()


def weights(model: AdapterModel, name: str) -> dict[str, Tensor]:
    return model.parts.tensors("adapters", name)


METHODS = ["seq_bn", "compacter[phm_dim=2,reduction_factor=8]", "lora", "dora", "vera[r=4]", "ia3", "loreft"]
METHODS += ["prefix_tuning[bottleneck_size=8]", "prompt_tuning", "lora|seq_bn", "seq_bn_inv"]


@pytest.mark.parametrize("config", METHODS)
def test_the_linear_average_is_the_weighted_mean_of_every_number(config: str) -> None:
    model = made(config)
    model.average_adapter("m", {"a": 1, "b": 2, "c": 1})
    for key, value in weights(model, "m").items():
        expected = 0.25 * weights(model, "a")[key] + 0.5 * weights(model, "b")[key] + 0.25 * weights(model, "c")[key]
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    model.average_adapter("n", ["a", "b"], weights=[2, -1], normalize_weights=False)
    key = next(iter(weights(model, "n")))
    torch.testing.assert_close(weights(model, "n")[key], 2 * weights(model, "a")[key] - weights(model, "b")[key])


@pytest.mark.parametrize("config", METHODS)
@pytest.mark.parametrize("options", [{}, {"combine_strategy": "ties", "density": 1.0}])
def test_the_average_of_equal_adapters_is_that_adapter(config: str, options: dict[str, Any]) -> None:
    model = made(config, "a")
    model.average_adapter("m", ["a", "a", "a"], **options)
    for key, value in weights(model, "m").items():
        torch.testing.assert_close(value, weights(model, "a")[key], rtol=1e-6, atol=1e-7)


def test_averaging_weights_is_not_averaging_outputs() -> None:
    model = made()
    given = tiny.inputs("bert")
    model.average_adapter("m", ["a", "b"])
    of_outputs = last(model(**given, adapters=Average("a", "b")))
    assert relative(last(model(**given, adapters="m")), of_outputs) > 0.01


@pytest.mark.parametrize("family", ["bert", "llama", "gpt2"])
def test_concatenated_loras_are_the_average_of_outputs_and_averaged_factors_are_not(family: str) -> None:
    config = "lora[attn_matrices=['q','v','o'],output_lora=True,alpha=4,r={}]"
    model = made(family=family, a=config.format(2), b=config.format(5), c=config.format(5), d="", names="abc")
    given = tiny.inputs(family)
    of_outputs = last(model(**given, adapters=Average("a", "b", weights=[3, 1])))
    model.average_adapter("cat", {"a": 3, "b": 1}, combine_strategy="lora_cat")
    torch.testing.assert_close(last(model(**given, adapters="cat")), of_outputs, rtol=1e-4, atol=1e-5)
    assert model.parts.adapter_configs["cat"].r == 7  # type: ignore[attr-defined]
    model.average_adapter("svd", {"a": 3, "b": 1}, combine_strategy="lora_delta_w_svd", svd_rank=7)
    torch.testing.assert_close(last(model(**given, adapters="svd")), of_outputs, rtol=1e-4, atol=1e-5)
    model.average_adapter("linear", ["b", "c"])
    of_outputs = last(model(**given, adapters=Average("b", "c")))
    assert relative(last(model(**given, adapters="linear")), of_outputs) > 0.01


def test_ranks_by_layer_are_concatenated_layer_by_layer() -> None:
    model = made(a="lora[r={'0':1,'default':3},use_rslora=True]", b="lora[r=2,alpha=3]", names="ab")
    given = tiny.inputs("bert")
    model.average_adapter("m", ["a", "b"], combine_strategy="lora_cat")
    assert weights(model, "m")["layer.0/attn.query/a"].shape[0] == 3
    assert weights(model, "m")["layer.2/attn.value/a"].shape[0] == 5
    expected = last(model(**given, adapters=Average("a", "b")))
    torch.testing.assert_close(last(model(**given, adapters="m")), expected, rtol=1e-4, atol=1e-5)


def test_a_truncated_average_is_the_best_of_its_rank() -> None:
    model = made("lora[r=3,alpha=6]", "ab")
    model.average_adapter("m", ["a", "b"], combine_strategy="lora_delta_w_svd", svd_rank=2)
    for module, first, second in zip(*(model.parts.modules_of("adapters", n).values() for n in "mab"), strict=True):
        u, values, vh = torch.linalg.svd((first.weight_change() + second.weight_change()) / 2)  # type: ignore[operator]
        best = u[:, :2] * values[:2] @ vh[:2]
        torch.testing.assert_close(module.weight_change(), best, rtol=1e-4, atol=1e-5)  # type: ignore[operator]


def test_a_negative_weight_negates_only_b() -> None:
    model = made("lora", "ab")
    model.average_adapter(
        "m", ["a", "b"], [1, -0.5], combine_strategy="lora_linear_only_negate_b", normalize_weights=False
    )
    for key, value in weights(model, "m").items():
        sign = 0.5 if key.endswith("/a") else -0.5
        torch.testing.assert_close(value, weights(model, "a")[key] + sign * weights(model, "b")[key])


def test_trimming_goes_over_the_whole_adapter_and_back_to_where_training_began() -> None:
    model = made("ia3", "ab")
    model.average_adapter("m", ["a", "b"], combine_strategy="ties", density=0.3)
    flat = [torch.cat([one.double().flatten() for one in weights(model, name).values()]) for name in "ab"]
    expected = 1 + ties([one - 1 for one in flat], [0.5, 0.5], 0.3, 0)  # (IA)³ begins at one
    found = torch.cat([one.flatten() for one in weights(model, "m").values()])
    torch.testing.assert_close(found, expected.float())
    assert float((found == 1).float().mean()) > 0.4
    norms = made("seq_bn[ln_before=True]", "ab")
    norms.average_adapter("m", ["a", "b"], combine_strategy="magnitude_prune", density=0.01)
    gain = weights(norms, "m")["layer.0/ffn/norm_before.weight"]
    assert float((gain == 1).float().mean()) > 0.9
    assert float((weights(norms, "m")["layer.0/ffn/down.weight"] == 0).float().mean()) > 0.9


def test_a_seeded_birth_is_where_training_began() -> None:
    model = made("seq_bn[init_weights_seed=0]", "ab")
    model.add_adapter("born", "seq_bn[init_weights_seed=0]")
    model.average_adapter("m", ["a", "b"], combine_strategy="magnitude_prune", density=0.01)
    found, born = weights(model, "m")["layer.0/ffn/up.weight"], weights(model, "born")["layer.0/ffn/up.weight"]
    assert float((found == born).float().mean()) > 0.9


def test_averaging_draws_nothing_from_the_callers_random_numbers() -> None:
    model = made(names="ab")
    torch.manual_seed(3)
    expected = torch.rand(4)
    model.average_adapter("d", ["a", "b"], combine_strategy="dare", density=0.5, seed=7)
    first = snapshot(model.parts.adapters["=d"])
    model.average_adapter("d", ["a", "b"], combine_strategy="dare", density=0.5, seed=7, overwrite_ok=True)
    assert same(first, snapshot(model.parts.adapters["=d"]))
    torch.manual_seed(3)
    model.average_adapter("t", ["a", "b"], combine_strategy="ties", density=0.5)
    model.average_adapter("u", ["a", "b"], combine_strategy="ties", density=0.5)
    assert same(snapshot(model.parts.adapters["=t"]), snapshot(model.parts.adapters["=u"]))
    assert expected.shape == (4,)


def test_the_result_is_an_adapter_like_any_other_and_says_what_it_is_made_of(tmp_path: Any) -> None:
    model = made()
    given = tiny.inputs("bert")
    before = snapshot(model.base)
    model.average_adapter("m", {"a": 1, "b": 3}, combine_strategy="dare_ties", density=0.5, seed=9, set_active=True)
    assert model.active_adapters == "m"
    assert same(before, snapshot(model.base))
    model.save_adapter(tmp_path / "m", "m")
    said = read(tmp_path / "m").manifest.training["average"]
    assert [(one["name"], one["weight"]) for one in said["sources"]] == [("a", 0.25), ("b", 0.75)]
    assert (said["strategy"], said["density"], said["seed"]) == ("dare_ties", 0.5, 9)
    assert "not the average of outputs" in said["note"]
    other = AdapterModel(tiny.model("bert")).eval()
    other.load_adapter(tmp_path / "m")
    assert torch.equal(last(other(**given, adapters="m")), last(model(**given, adapters="m")))
    model.train_adapter("m")
    model.eval()
    model.average_adapter("m2", ["m", "m"])
    model.set_active_adapters(None)
    model.delete_adapter("m")
    assert "m" not in model.parts.averages
    assert "average" not in model.package("a").manifest.training


def test_an_average_of_language_adapters_is_a_language_adapter() -> None:
    model = made(names="abc")
    model.parts.roles |= {"a": "language", "b": "language", "c": "task"}
    model.average_adapter("both", ["a", "b"])
    model.average_adapter("mixed", ["a", "c"])
    assert (model.parts.roles.get("both"), model.parts.roles.get("mixed")) == ("language", None)
    assert model.package("both").manifest.role == "language"
    with pytest.raises(CompositionError, match="language adapter"):
        model.set_active_adapters("Stack(c, both)")


def test_an_adapter_may_be_replaced_by_an_average_with_itself() -> None:
    model = made(names="ab")
    first = {key: value.clone() for key, value in weights(model, "a").items()}
    model.average_adapter("a", ["a", "b"], overwrite_ok=True)
    key = "layer.0/ffn/up.weight"
    torch.testing.assert_close(weights(model, "a")[key], (first[key] + weights(model, "b")[key]) / 2)


def test_heads_are_averaged_and_one_linear_layer_averages_its_logits() -> None:
    model = adapted(heads=[])
    for name, layers in (("x", 1), ("y", 1), ("deep", 2)):
        model.add_classification_head(name, num_labels=3, layers=layers)
    shaken(model.parts.heads, seed=4)
    model.average_head("z", {"x": 1, "y": 3})
    given = tiny.inputs("bert")
    logits = {name: model(**given, adapters="a", head=name).logits for name in "xyz"}
    torch.testing.assert_close(logits["z"], 0.25 * logits["x"] + 0.75 * logits["y"])
    with pytest.raises(AdapterError, match="head 'deep' is not like 'x'"):
        model.average_head("no", ["x", "deep"])
    with pytest.raises(AdapterError, match="no head 'q'"):
        model.average_head("no", ["x", "q"])
    with pytest.raises(AdapterError, match="head 'z' is already there"):
        model.average_head("z", ["x", "y"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"adapter_list": ["a", "q"]}, "no adapter 'q'"),
        ({"adapter_list": []}, "names nothing to average"),
        ({"adapter_list": "ab"}, "'ab' names nothing to average; give a list"),
        ({"adapter_list": {"a": 1}, "weights": [1]}, "weights are given twice"),
        ({"weights": [1]}, "must be 2 finite numbers"),
        ({"weights": [1, float("nan")]}, "must be 2 finite numbers"),
        ({"weights": [1, -1]}, "sum to zero and cannot be made shares; pass normalize_weights=False"),
        ({"combine_strategy": "slerp"}, "combine_strategy 'slerp' is unknown; there are linear, magnitude_prune"),
        ({"combine_strategy": "ties"}, "combine_strategy 'ties' needs density"),
        ({"density": 0.5}, "combine_strategy 'linear' takes no density"),
        ({"svd_rank": 2}, "combine_strategy 'linear' takes no svd_rank"),
        ({"combine_strategy": "ties", "density": 0}, "density 0 must be above 0 and at most 1"),
        ({"combine_strategy": "lora_delta_w_svd"}, "combine_strategy 'lora_delta_w_svd' needs svd_rank"),
        ({"combine_strategy": "lora_cat"}, "is for plain LoRAs; 'a' is bottleneck"),
        ({"combine_strategy": "lora_linear_only_negate_b"}, "is for plain LoRAs; 'a' is bottleneck"),
        ({"adapter_list": ["l", "g"], "combine_strategy": "lora_cat"}, "'g' is lora, with a gate"),
        ({"adapter_list": ["l", "k"], "combine_strategy": "lora_cat"}, "LoRA 'k' goes to other places than 'l'"),
        ({"adapter_list": ["a", "l"]}, "adapter 'l' is not of the kind of 'a': they differ in"),
        ({"adapter_list": ["a", "w"]}, r"they differ in reduction_factor \(4, 8\); weights that mean different things"),
        ({"adapter_name": "l"}, "adapter 'l' is already there"),
        ({"combine_strategy": "dare", "density": 0.5, "seed": -1}, "seed -1 must be a whole number"),
    ],
)
def test_what_cannot_be_averaged_is_refused_and_changes_nothing(arguments: dict[str, Any], message: str) -> None:
    model = made(
        names="abwlgk",
        w="seq_bn[reduction_factor=8]",
        l="lora",
        g="lora[use_gating=True]",
        k="lora[attn_matrices=['k']]",
    )
    before = snapshot(model)
    with pytest.raises(AdapterError, match=message):
        model.average_adapter(**{"adapter_name": "m", "adapter_list": ["a", "b"], **arguments})
    assert same(before, snapshot(model))
