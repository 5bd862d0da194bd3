"""What is often said of sizes, counted: shares with their denominator, files, fusions, disks full of adapters."""

from pathlib import Path

import pytest

from graftwork.core.backbone import Backbone, load_skeleton
from graftwork.core.counting import counted
from graftwork.core.heads import HeadConfig
from graftwork.registry.package import read_manifest
from graftwork.sizes import of_fusion, of_head, of_layers, of_method, storage
from tests.adapted import adapted
from tests.house.test_tables import table

HEADING = "### 5. Reduction factors 2, 8, 16 and 64 are 8.5, 2.1, 1.1 and 0.3 % of BERT-base"
BERT = Backbone(load_skeleton("bert-base-uncased"))


def test_the_share_of_an_adapter_on_llama_is_of_eight_billion() -> None:
    llama = Backbone(load_skeleton("meta-llama/Meta-Llama-3-8B"))
    two, one = (of_method(llama, f"{name}[reduction_factor=32]") for name in ("double_seq_bn", "seq_bn"))
    assert (two["parameters"], one["parameters"]) == (67_379_200, 33_689_600)
    assert counted(llama.model) == pytest.approx(7.505e9, rel=1e-3)  # the trunk, without a vocabulary head
    whole = counted(llama.model) + 128_256 * 4096
    assert whole == 8_030_261_248
    assert (round(100 * two["parameters"] / whole, 2), round(100 * one["parameters"] / whole, 2)) == (0.84, 0.42)


def test_the_table_of_reduction_factors_names_what_shares_are_of() -> None:
    found = []
    for factor in (2, 8, 16, 64):
        rows = [of_method(BERT, f"{name}[reduction_factor={factor}]") for name in ("seq_bn", "double_seq_bn")]
        shares = [f"{row[of]:.2f} %" for row in rows for of in ("% of model", "% of layers")]
        found.append([str(factor), f"{rows[0]['parameters']:,}", *shares])
    assert table("claims.md", HEADING) == found
    assert (counted(BERT.model), of_layers(BERT)) == (109_482_240, 85_054_464)


def test_a_listing_that_adds_the_usual_head_trains_more_than_its_adapter() -> None:
    head = of_head(BERT, HeadConfig(kind="classification", num_outputs=2))
    trained = of_method(BERT, "seq_bn")["parameters"] + head
    assert (head, trained) == (592_130, 1_486_658)
    assert round(100 * trained / (counted(BERT.model) + trained), 2) == 1.34


def test_a_head_is_another_part_of_a_package_and_may_be_left_out(tmp_path: Path) -> None:
    model = adapted(adapters=["a"], heads=["a"])
    model.save_adapter(tmp_path / "with", "a")
    model.save_adapter(tmp_path / "without", "a", with_head=False)
    (_, whole), (_, bare) = read_manifest(tmp_path / "with"), read_manifest(tmp_path / "without")
    assert whole.parameters("adapter") == bare.parameters("adapter") == 3 * (2 * 32 * 8 + 8 + 32)
    assert (whole.parameters("head"), bare.parameters("head")) == (1_122, 0)


def test_a_fusion_is_no_small_module_and_its_size_knows_nothing_of_its_members() -> None:
    fusion, adapter, lora = of_fusion(BERT, "dynamic"), of_method(BERT, "seq_bn"), of_method(BERT, "lora")
    assert fusion["parameters"] == 21_252_096 == 12 * (3 * 768**2 + 2 * 768)
    assert fusion["note"] == "above 5 %: no small module"
    assert fusion["parameters"] // 300_000 == 70
    assert fusion["parameters"] / adapter["parameters"] == pytest.approx(23.8, abs=0.05)
    assert lora["parameters"] == 294_912  # what is near 300,000 is LoRA of rank 8 at query and value


def test_an_adapter_beside_a_lora_in_numbers() -> None:
    adapter, lora = of_method(BERT, "seq_bn"), of_method(BERT, "lora[r=8]")
    assert (round(adapter["% of model"], 2), round(lora["% of model"], 2)) == (0.82, 0.27)
    assert adapter["parameters"] / lora["parameters"] == pytest.approx(3.03, abs=0.01)


def test_thirteen_megabytes_are_an_adapter_of_the_large_model() -> None:
    large = Backbone(load_skeleton("bert-large-uncased"))
    assert 4e-6 * of_method(large, "seq_bn")["parameters"] == pytest.approx(12.69, abs=0.01)
    assert 4e-6 * of_method(BERT, "seq_bn")["parameters"] == pytest.approx(3.58, abs=0.01)
    assert 4e-6 * counted(BERT.model) == pytest.approx(438, abs=0.1)
    assert 4e-6 * 0.036 * counted(large.model) == pytest.approx(48.3, abs=0.1)


def test_storage_of_the_usual_examples() -> None:
    large = Backbone(load_skeleton("bert-large-uncased"))
    whole = storage(large, ["26*seq_bn"])["in all"][0]
    assert (whole["as many whole models, MB"], whole["adapters, MB"], whole["one model and they, MB"]) == (
        34_855,
        330,
        1_670,
    )
    narrow = storage(BERT, ["4*seq_bn", "4*seq_bn"])["in all"][0]
    assert narrow["adapters, MB"] == 28.62
    languages = storage(BERT, ["4*seq_bn_inv[reduction_factor=2]", "4*seq_bn"])["in all"][0]
    assert languages["adapters, MB"] == 133  # 132.5 before rounding
    nine = (1 + 9 * 0.036) / 9
    assert 1 / nine == pytest.approx(6.8, abs=0.01)  # nine tasks at 3.6 % each, the shared base counted
