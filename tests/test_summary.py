"""The table of what a model carries."""

from graftwork.compose.tree import Fuse, Stack
from graftwork.model import AdapterModel
from graftwork.summary import heavy
from tests import tiny
from tests.adapted import adapted


def test_every_part_is_counted() -> None:
    model = AdapterModel(tiny.model("bert"))
    model.add_adapter("small", "seq_bn")  # D 32, M 2, three layers
    model.add_adapter("large", "double_seq_bn[reduction_factor=4]")  # M 8, two places in three layers
    model.add_classification_head("large", num_labels=3, layers=2)
    model.add_tagging_head("tags", num_labels=5)
    model.add_adapter_fusion(Fuse("small", "large", name="both"))
    summary = model.adapter_summary()
    counts = {(row.name, row.kind): row.parameters for row in summary.rows}
    fused = 2 * (32 * 32 + 32) + 32 * 32
    assert counts == {
        ("small", "bottleneck"): 3 * (2 * 32 * 2 + 2 + 32),
        ("large", "bottleneck"): 6 * (2 * 32 * 8 + 8 + 32),
        ("both", "Fuse(small, large, name=both)"): 3 * fused,
        ("large", "classification head"): 32 * 32 + 32 + 3 * 32 + 3,
        ("tags", "tagging head"): 5 * 32 + 5,
    }
    assert summary.base_parameters == sum(parameter.numel() for parameter in model.base.parameters())
    assert sum(counts.values()) == sum(parameter.numel() for parameter in model.parts.parameters())
    assert all(row.share == 100 * row.parameters / summary.base_parameters for row in summary.rows)


def test_what_is_active_and_what_trains() -> None:
    model = adapted(adapters=["l", "a", "b"], heads=["a", "b"])
    model.add_adapter_fusion("a,b")
    model.train_adapter("a")
    model.set_active_adapters(Stack("l", "a"))
    rows = {(row.name, "head" in row.kind): (row.active, row.trains) for row in model.adapter_summary().rows}
    assert rows == {
        ("l", False): (True, False),
        ("a", False): (True, True),
        ("b", False): (False, False),
        ("a,b", False): (False, False),
        ("a", True): (True, True),
        ("b", True): (False, False),
    }
    model.train_adapter_fusion("a,b")
    rows = {(row.name, "head" in row.kind): (row.active, row.trains) for row in model.adapter_summary().rows}
    assert rows[("a,b", False)] == (True, True)
    assert rows[("a", False)] == (True, False)
    assert rows[("l", False)] == (False, False)


def test_the_table_lines_up() -> None:
    model = adapted(adapters=["mood"], heads=["mood"])
    model.train_adapter("mood")
    lines = str(model.adapter_summary()).splitlines()
    assert lines[0].split() == ["Name", "Kind", "Parameters", "%", "of", "base", "Active", "Trains"]
    assert lines[2].split() == ["mood", "bottleneck", "1,656", "5.170", "yes", "yes"]
    assert lines[3].split() == ["mood", "classification", "head", "1,122", "3.503", "yes", "yes"]
    assert lines[4].split() == ["(frozen", "base)", "32,032", "100.000", "no"]
    assert len({line.find("  yes") for line in lines[2:4]}) == 1


def test_a_model_without_parts_has_a_base() -> None:
    summary = AdapterModel(tiny.model("gpt2")).adapter_summary()
    assert summary.rows == ()
    assert "(frozen base)" in str(summary)


def test_a_fusion_above_five_percent_of_its_base_is_said_to_be_heavy() -> None:
    assert heavy("mix", 50, 1000) is None
    said = heavy("mix", 21_252_096, 109_482_240)
    assert said is not None
    assert said.startswith("fusion mix has 21,252,096 parameters, 19.4 % of the base")
    assert said.endswith("Average(a, b) has none")
