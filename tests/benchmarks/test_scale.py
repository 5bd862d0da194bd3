"""What benchmarks/scale.py and crowd.py work out, and a crowd on a model of ours."""

from typing import Any

import pytest
import torch
from torch import Tensor

from graftwork.model import AdapterModel
from tests.benchmarks.scripts import script
from tests.tiny import model

crowd, scale = script("crowd"), script("scale")


class Side:
    """Our side as `side_graftwork.py` has it, on a tiny model."""

    def __init__(self) -> None:
        self.model = AdapterModel(model("bert")).eval()

    def add(self, name: str) -> None:
        self.model.add_adapter(name)

    load = add

    def rows(self, names: list[str], inputs: dict[str, Tensor]) -> Any:
        return self.model(**inputs, adapters=names).last_hidden_state


def test_a_crowd_grows_loads_switches_and_mixes() -> None:
    side, inputs = Side(), {"input_ids": torch.ones(3, 4, dtype=torch.long)}
    made = crowd.Crowd(side, lambda given: side.model.base(**given))
    assert made.grow(2, seconds=60)["count"] == 2
    grown = made.grow(4, seconds=60)
    assert (grown["count"], len(grown["times"])) == (4, 2)
    assert made.grow(9, seconds=0)["count"] == 4, "time is up before the first one"
    assert len(made.load(2)["times"]) == 2
    assert len(made.switch(inputs, 3)["first"]) == 3
    assert len(made.switch(inputs, 3)["again"]) == 1, "one of four has never run"
    times = made.mixed(inputs, distinct=4, law="zipf", rounds=2, clock="wall")
    assert {name: len(own) for name, own in times.items()} == {"base": 2, "one": 2, "mixed": 2}
    assert list(side.model.parts.adapter_configs) == [
        "crowd_0",
        "crowd_1",
        "crowd_2",
        "crowd_3",
        "loaded_0",
        "loaded_1",
    ]


def test_rows_draw_alike_or_by_zipfs_law() -> None:
    names = [f"a{number}" for number in range(4)]
    uniform, zipf = (next(crowd.draws(names, law, 12_000)) for law in ("uniform", "zipf"))
    assert uniform.count("a0") / uniform.count("a3") == pytest.approx(1, rel=0.1)
    assert zipf.count("a0") / zipf.count("a3") == pytest.approx(4, rel=0.1)
    drawing = crowd.draws(names, "uniform", 12)
    assert next(drawing) != next(drawing), "every batch draws anew"
    with pytest.raises(ValueError, match="no law 'flat'; there are uniform and zipf"):
        next(crowd.draws(names, "flat", 1))


def test_a_mixture_is_set_beside_the_base_and_one_adapter() -> None:
    found = scale.mixture({"base": [10.0, 10.0], "one": [11.0, 11.0], "mixed": [22.0, 22.0]}, rows=32)
    assert found["rows_a_second"] == pytest.approx(32 / 0.022)
    assert found["base_rows_a_second"] == pytest.approx(3200)
    assert (found["ratio"], found["to_one"]) == pytest.approx((2.2, 2.0))


def test_the_page_holds_what_was_found() -> None:
    grown = {"side": "graftwork", "count": 1000, "add": 2.5, "load": 7.0, "first": None, "again": None, "bytes": 4.2e6}
    mixed = scale.mixture({"base": [10.0], "one": [11.0], "mixed": [12.0]}, rows=32)
    mixed |= {"side": "graftwork", "batch": "32x16", "distinct": 1000, "law": "zipf"}
    compiled = {"setup": "seq_bn", "batch": "8x8", "seconds": 21.0, "base_seconds": 20.0}
    found = {
        "layers": 6, "width": 384, "dtype": "float32", "threads": 1, "asked": 1000, "seconds": 8,
        "versions": {"peft": "peft 0"}, "growth": [grown], "mixtures": [mixed], "sweep": [],
        "compile": [compiled | {"eager": 1.1, "compiled": 1.05, "faster": 1.3, "base_faster": 1.2}],
    }  # fmt: skip
    text = scale.page_of(found, "python benchmarks/scale.py")
    assert "| graftwork | 1,000 | 2.5 | 7.0 | – | – | 4.20 MB |" in text
    assert "| graftwork | 32x16 | 1,000 | zipf | 2667 | 3200 | 1.200 (1.200–1.200) | 1.091 |" in text
    assert "| seq_bn | 8x8 | 21.0 | 20.0 | 1.100 | 1.050 | 1.30 x | 1.20 x |" in text
    assert "## Batch and length" not in text
    assert "stopped" not in text
    peer = {**mixed, "side": "peft", "distinct": 32}
    found |= {"growth": [grown, {**grown, "side": "peft", "count": 100}], "mixtures": [mixed, peer]}
    said = (
        "peft stopped at adapter 100: 1,000 were not reached within the 8 s that each count has, and its batches draw"
    )
    assert f"{said} from 32 at most." in scale.page_of(found, "python benchmarks/scale.py")


def test_a_sweep_stays_within_its_tokens() -> None:
    assert max(shape.rows * shape.tokens for shape in scale.SWEEP) == scale.MOST
    assert (64, 512) not in {(shape.rows, shape.tokens) for shape in scale.SWEEP}
