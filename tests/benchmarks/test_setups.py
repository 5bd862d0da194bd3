"""What a setup is, and what arithmetic says it costs: against the figures of the papers' forms worked out by hand."""

import pytest

from graftwork.compose.grammar import parse as parse_composition
from tests.benchmarks.scripts import script

setups = script("setups")
BERT = setups.Shape(8, 64)


def floor(name: str, shape: object = BERT) -> tuple[float, float]:
    found = setups.floors(setups.parse(name), shape)
    return round(found.multiplications, 3), round(found.weights, 3)


def test_names_say_what_runs() -> None:
    assert setups.parse("fuse5").expression() == "Fuse(seq_bn_0, seq_bn_1, seq_bn_2, seq_bn_3, seq_bn_4)"
    assert setups.parse("parallel8_drop5") == setups.Setup("parallel8_drop5", "parallel", "seq_bn", 8, 5)
    assert setups.parse("lora").adapters == ("lora_0",)
    assert setups.parse("mixed2").rows(5) == ["seq_bn_0", "seq_bn_1", "seq_bn_0", "seq_bn_1", "seq_bn_0"]
    assert setups.parse("idle").expression() is None


@pytest.mark.parametrize("name", setups.DEFAULT)
def test_every_setup_is_a_composition(name: str) -> None:
    expression = setups.parse(name).expression()
    if expression is not None:
        parse_composition(expression)


@pytest.mark.parametrize("name", ["fuse", "seq", "fuse0", "stack3_drop2", "mixed8x"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"no setup '{name}'; there are base, seq_bn"):
        setups.parse(name)


def test_floors_are_those_worked_out_by_hand() -> None:
    # a layer of BERT-base: 12·768² = 7,077,888 weights; at 64 tokens 2·768·64 = 98,304 more multiplications a token
    # an adapter: 2·768·48 = 73,728; a Fuse of three, folded: 3·3·768·48 + 3·768 = 334,080
    assert floor("base") == (1.0, 1.0)
    assert floor("seq_bn") == (round(1 + 73_728 / 7_176_192, 3), round(1 + 73_728 / 7_077_888, 3))
    assert floor("double_seq_bn")[1] == round(1 + 147_456 / 7_077_888, 3) == 1.021
    assert floor("stack3")[1] == floor("average3")[1] == 1.031
    assert floor("fuse3")[1] == round(1 + 334_080 / 7_077_888, 3) == 1.047
    assert floor("fuse8")[1] == round(1 + 890_880 / 7_077_888, 3) == 1.126
    assert floor("lora")[1] == round(1 + 4 * 768 * 8 / 7_077_888, 3)


def test_rows_of_different_adapters_multiply_as_one_and_read_as_many() -> None:
    assert floor("mixed8")[0] == floor("seq_bn")[0]
    assert floor("mixed8")[1] == round(1 + 8 * 73_728 / 7_077_888, 3)
    assert floor("mixed32") == floor("mixed8")  # eight rows read eight adapters at most


def test_a_shared_trunk_is_repeated_from_the_first_layer_that_differs() -> None:
    one = setups.Shape(1, 64)
    plain = 1 + 11 * 8  # the first layer once, eleven layers eight times
    assert floor("parallel8", one)[0] == pytest.approx(plain / 12 + 12 * 8 * 73_728 / (12 * 7_176_192), abs=1e-3)
    dropped = 6 + 6 * 8
    assert floor("parallel8_drop5", one)[0] == pytest.approx(dropped / 12 + 7 * 8 * 73_728 / (12 * 7_176_192), abs=1e-3)
    assert floor("parallel8_drop12", one) == (1.0, 1.0)
    assert floor("parallel8_drop20", one) == (1.0, 1.0)


def test_goals_are_for_the_shape_they_were_set_for() -> None:
    assert setups.goal("fuse3", BERT) == 1.06
    assert setups.goal("fuse3", setups.Shape(8, 1)) == 1.07
    assert setups.goal("fuse3", setups.Shape(8, 16)) is None
    assert setups.goal("fuse3", setups.Shape(8, 64, 2, 64)) is None
    assert setups.goal("idle", setups.DISPATCH) == 1.05
    assert setups.goal("idle", BERT) is None


def test_a_parallel_runs_on_one_text() -> None:
    assert str(setups.shaped(setups.parse("parallel8"), BERT)) == "1x64"
    assert str(setups.shaped(setups.parse("mixed8"), BERT)) == "8x64"
