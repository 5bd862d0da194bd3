"""Parameters and bytes as `graftwork show` counts them, against arithmetic on published shapes."""

from pathlib import Path

import pytest

from graftwork.core.backbone import Backbone, load_skeleton
from graftwork.core.counting import counted
from graftwork.core.heads import HeadConfig
from graftwork.describe import describe
from graftwork.errors import AdapterError, BackboneError, UserError
from graftwork.registry.store import Registry
from graftwork.sizes import of_fusion, of_head, of_layers, of_method, storage
from tests import tiny, zoo


@pytest.fixture(scope="module")
def bert() -> Backbone:
    return Backbone(load_skeleton("bert-base-uncased"))


def test_what_percentages_are_of(bert: Backbone) -> None:
    d, f = 768, 3072
    layer = 4 * (d * d + d) + d * f + f + f * d + d + 2 * 2 * d
    embeddings = (30522 + 512 + 2) * d + 2 * d
    assert of_layers(bert) == 12 * layer == 85_054_464
    assert counted(bert.model) == 12 * layer + embeddings + d * d + d == 109_482_240
    row = of_method(bert, "seq_bn")
    assert (row["modules"], row["parameters"]) == (12, 894_528)
    assert row["% of model"] == pytest.approx(0.81705, abs=1e-5)
    assert row["% of layers"] == pytest.approx(1.05171, abs=1e-5)


def test_layers_that_share_their_weights_count_once() -> None:
    albert = Backbone(zoo.model("albert"))
    assert of_layers(albert) == sum(p.numel() for p in albert.model.encoder.albert_layer_groups.parameters())
    both = Backbone(tiny.model("t5"))
    of_blocks = [block for stack in (both.model.encoder, both.model.decoder) for block in stack.block]
    assert of_layers(both) == sum(p.numel() for block in of_blocks for p in block.parameters())


def test_a_fusion_is_counted_and_told_when_it_is_heavy(bert: Backbone) -> None:
    row = of_fusion(bert, "dynamic")
    assert row["parameters"] == 12 * (3 * 768 * 768 + 2 * 768) == 21_252_096
    assert row["note"] == "above 5 %: no small module"


def test_a_head_is_counted_apart(bert: Backbone) -> None:
    two_layers = HeadConfig(kind="classification", num_outputs=2)
    assert of_head(bert, two_layers) == 768 * 768 + 768 + 2 * 768 + 2 == 592_130


def test_storage_is_arithmetic(bert: Backbone) -> None:
    found = storage(bert, ["4*seq_bn_inv[reduction_factor=2]", " 2 * seq_bn "])
    (language, task) = found["storage"]
    assert (language["adapters"], language["parameters each"], language["MB in float32"]) == (4, 7_387_776, 118)
    assert (task["method"], task["MB in float32"], task["MB in bfloat16"]) == ("seq_bn", 7.16, 3.58)
    single, half = found["in all"]
    adapters = 4 * 7_387_776 + 2 * 894_528
    assert single == {
        "dtype": "float32",
        "adapters, MB": round(4 * adapters / 1e6),
        "one model and they, MB": round(4 * (109_482_240 + adapters) / 1e6),
        "as many whole models, MB": round(6 * 4 * 109_482_240 / 1e6),
        "times less": round(6 * 109_482_240 / (109_482_240 + adapters), 1),
    }
    assert half["adapters, MB"] == 62.68


@pytest.mark.parametrize("text", ["seq_bn", "0*seq_bn", "-2*seq_bn", "2*", "two*seq_bn", ""])
def test_what_is_no_number_of_adapters_is_refused(bert: Backbone, text: str) -> None:
    with pytest.raises(UserError, match=r"write a number, \*, and a method, as in '16\*seq_bn'"):
        storage(bert, [text])


def test_storage_is_asked_of_a_model(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    said = describe("minilm", registry, store=["3*seq_bn"])
    assert (said["kind"], said["storage"][0]["parameters each"]) == ("storage", 6 * (2 * 384 * 24 + 24 + 384))
    with pytest.raises(BackboneError, match="seq_bn"):
        describe("seq_bn", registry, store=["3*seq_bn"])
    with pytest.raises(UserError, match=r"--store names its methods itself \(3\*lora\); leave --method lora out"):
        describe("minilm", registry, store=["3*lora"], method="lora")
    with pytest.raises(AdapterError, match="seq_bm"):
        describe("minilm", registry, store=["3*seq_bm"])
