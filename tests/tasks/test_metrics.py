import warnings

import numpy
import pytest
import seqeval.metrics
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from graftwork.tasks import metrics

numbers = st.floats(-1e3, 1e3).map(lambda x: round(x, 3))


def test_class_scores_by_hand() -> None:
    gold = ["a", "a", "a", "b", "b", "c"]
    predicted = ["a", "a", "b", "b", "c", "c"]
    scores = metrics.class_scores(predicted, gold).once()
    assert scores["accuracy"] == pytest.approx(4 / 6)
    # F1 = 2tp / (2tp + fp + fn): a: 4/5, b: 2/4, c: 2/3
    assert scores["f1_macro"] == pytest.approx((4 / 5 + 2 / 4 + 2 / 3) / 3)
    # Gorodkin's R_K: (c s - sum p_k t_k) / sqrt((s^2 - sum p_k^2)(s^2 - sum t_k^2)), t = 3,2,1 and p = 2,2,2
    assert scores["mcc"] == pytest.approx((4 * 6 - 12) / ((36 - 12) * (36 - 14)) ** 0.5)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30))
def test_binary_mcc_is_the_correlation_of_two_indicators(pairs: list[tuple[bool, bool]]) -> None:
    predicted, gold = [str(p) for p, _ in pairs], [str(g) for _, g in pairs]
    x, y = numpy.array(pairs, dtype=float).T
    assert metrics.class_scores(predicted, gold).once()["mcc"] == pytest.approx(
        metrics.pearson(x[None], y[None], numpy.ones((1, len(x))))[0], abs=1e-9
    )


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("abcd")), min_size=1, max_size=40))
def test_class_scores_equal_scikit_learns(pairs: list[tuple[str, str]]) -> None:
    predicted, gold = [p for p, _ in pairs], [g for _, g in pairs]
    alone = len({*predicted, *gold}) == 1
    assert metrics.class_scores(predicted, gold).once() == pytest.approx(
        {
            "accuracy": accuracy_score(gold, predicted),
            "f1_macro": f1_score(gold, predicted, average="macro", zero_division=0.0),
            "mcc": 0.0 if alone else matthews_corrcoef(gold, predicted),
        }
    )


tags = st.sampled_from(["O", "B-A", "I-A", "B-B", "I-B", "E-A", "S-B"])


@given(st.lists(st.lists(st.tuples(tags, tags), max_size=6), min_size=1, max_size=6))
def test_entity_scores_equal_seqevals(rows: list[list[tuple[str, str]]]) -> None:
    predicted, gold = [[p for p, _ in row] for row in rows], [[g for _, g in row] for row in rows]
    found = metrics.entity_scores(predicted, gold).once()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert found["precision"] == pytest.approx(seqeval.metrics.precision_score(gold, predicted, zero_division=0))
        assert found["recall"] == pytest.approx(seqeval.metrics.recall_score(gold, predicted, zero_division=0))
        assert found["f1"] == pytest.approx(seqeval.metrics.f1_score(gold, predicted, zero_division=0))


def test_value_scores_by_hand() -> None:
    scores = metrics.value_scores([1.0, 2.0, 4.0], [1.0, 3.0, 2.0]).once()
    # deviations (-4, -1, 5)/3 and (-1, 1, 0): r = (4 - 1)/3 / sqrt(42/9 * 2)
    assert scores["pearson"] == pytest.approx(1 / (42 / 9 * 2) ** 0.5)
    assert scores["spearman"] == pytest.approx(1 - 6 * 2 / (3 * 8))  # 1 - 6 sum d^2 / (n (n^2 - 1))
    assert scores["mse"] == pytest.approx((0 + 1 + 4) / 3)


@given(st.lists(st.tuples(numbers, numbers), min_size=3, max_size=30))
def test_correlations_equal_scipy(pairs: list[tuple[float, float]]) -> None:
    x, y = numpy.array(pairs).T
    scores = metrics.value_scores(list(x), list(y)).once()
    constant = len(set(x)) == 1 or len(set(y)) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = 0.0 if constant else stats.pearsonr(x, y).statistic
        expected_rank = 0.0 if constant else stats.spearmanr(x, y).statistic
    assert scores["pearson"] == pytest.approx(expected, abs=1e-6)
    assert scores["spearman"] == pytest.approx(expected_rank, abs=1e-6)


def test_entities_by_hand() -> None:
    gold = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "B-ORG", "I-ORG"]]
    predicted = [["B-PER", "I-PER", "O", "B-ORG"], ["B-LOC", "B-ORG", "O"]]
    scores = metrics.entity_scores(predicted, gold).once()
    # 4 predicted, 3 gold, 1 right: PER. LOC has the wrong type, ORG the wrong end, LOC in row 2 is invented.
    assert scores["precision"] == pytest.approx(1 / 4)
    assert scores["recall"] == pytest.approx(1 / 3)
    assert scores["f1"] == pytest.approx(2 / 7)
    assert scores["accuracy"] == pytest.approx(4 / 7)


def test_entities_are_read_as_conlleval_reads_them() -> None:
    assert metrics.entities(["I-PER", "I-PER", "I-LOC", "O", "B-LOC", "B-LOC"]) == [
        ("PER", 0, 2),
        ("LOC", 2, 3),
        ("LOC", 4, 5),
        ("LOC", 5, 6),
    ]
    assert metrics.entities(["B-unit-no", "I-unit-no"]) == [("unit-no", 0, 2)]
    assert metrics.entities(["S-A", "B-A", "E-A", "E-A"]) == [("A", 0, 1), ("A", 1, 3), ("A", 3, 4)]


def test_tag_accuracy_counts_words_not_rows() -> None:
    assert metrics.tag_accuracy([["NOUN"], ["VERB", "X", "X"]], [["NOUN"], ["VERB", "ADJ", "ADV"]]).once() == {
        "accuracy": 2 / 4
    }


@pytest.mark.filterwarnings("error")
def test_what_is_undefined_is_zero() -> None:
    assert metrics.value_scores([1.0, 1.0], [1.0, 2.0]).once() == {"pearson": 0.0, "spearman": 0.0, "mse": 0.5}
    assert metrics.entity_scores([["O"]], [["O"]]).once() == {
        "f1": 0.0,
        "precision": 0.0,
        "recall": 0.0,
        "accuracy": 1.0,
    }
    assert metrics.class_scores(["a", "a"], ["a", "b"]).once()["mcc"] == 0.0
    assert metrics.class_scores(["a", "a"], ["a", "a"]).once() == {"accuracy": 1.0, "f1_macro": 1.0, "mcc": 0.0}
    assert metrics.tag_accuracy([[]], [[]]).once() == {"accuracy": 0.0}


@pytest.mark.parametrize(
    "score", [metrics.class_scores, metrics.value_scores, metrics.tag_accuracy, metrics.entity_scores]
)
def test_unequal_or_no_rows_are_refused(score) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="1 predictions for 2 rows"):
        score(["1"], ["1", "2"])
    with pytest.raises(ValueError, match="at least one row"):
        score([], [])


def test_a_row_with_a_word_missing_is_named() -> None:
    with pytest.raises(ValueError, match="row 2 has 1 predicted tags for 2 words"):
        metrics.tag_accuracy([["O"], ["O"]], [["O"], ["O", "O"]]).once()
