"""The support desk data keeps what its README promises: sizes, keys, balance, valid tags, no test row seen in training.

"Near-duplicate" is lexical: shared words or shared character trigrams. A paraphrase in other words passes unseen.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
DESK = ROOT / "examples" / "support_desk"
SPLITS = ("train", "dev", "test")
SHARES = {"train": 0.65, "dev": 0.12, "test": 0.23}
LABELS = {
    "intent": {
        "order_status",
        "cancel_order",
        "return_item",
        "refund_status",
        "payment_issue",
        "change_address",
        "product_question",
        "complaint",
    },
    "sentiment": {"positive", "neutral", "negative"},
    "category": {"mobiles", "fashion", "grocery", "home_kitchen", "books", "beauty", "footwear", "appliances"},
}
ENTITIES = frozenset({"NAME", "HOUSE", "STREET", "LOCALITY", "CITY", "STATE", "PIN"})
TASKS = (*LABELS, "address")
LEAST_ROWS = 300
LEAST_SHARE = 0.08
TEXT_CAP = 0.6
FRAME_CAP = 0.75

Row = dict[str, Any]


def rows(task: str, split: str) -> list[Row]:
    return [json.loads(line) for line in (DESK / task / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]


def text(row: Row) -> str:
    return row["text"] if "text" in row else " ".join(row["tokens"])


def frame(row: Row) -> str:
    """The message around the address: each entity is replaced by its type."""
    pairs = zip(row["tokens"], row["tags"], strict=True)
    return " ".join(token if tag == "O" else tag[2:] for token, tag in pairs if not tag.startswith("I-"))


def entities(row: Row) -> list[tuple[str, str]]:
    """(type, lower-cased words) of each entity, in order."""
    found: list[tuple[str, str]] = []
    for token, tag in zip(row["tokens"], row["tags"], strict=True):
        if tag.startswith("B-"):
            found.append((tag[2:], token.lower()))
        elif tag.startswith("I-"):
            kind, words = found.pop()
            found.append((kind, f"{words} {token.lower()}"))
    return found


def place(row: Row) -> frozenset[tuple[str, str]]:
    """What the address says, whoever lives there; a single part (a bare city, say) is not yet an address."""
    parts = frozenset(part for part in entities(row) if part[0] != "NAME")
    return parts if len(parts) > 1 else frozenset()


def normal(sentence: str) -> str:
    return " ".join(re.sub(r"[\W\d_]+", " ", sentence.lower()).split())


def jaccard(left: frozenset[str], right: frozenset[str]) -> float:
    return len(left & right) / len(left | right) if left or right else 1.0


def shingles(sentence: str) -> tuple[frozenset[str], frozenset[str]]:
    """(words, character trigrams) of the normalised sentence."""
    plain = f" {normal(sentence)} "
    return frozenset(plain.split()), frozenset(plain[i : i + 3] for i in range(len(plain) - 2))


def near_duplicates(seen: Iterable[str], unseen: Iterable[str], cap: float) -> list[tuple[str, str]]:
    """Pairs (seen, unseen) at or over `cap` in word Jaccard or in trigram Jaccard."""
    left = [(sentence, shingles(sentence)) for sentence in seen]
    right = [(sentence, shingles(sentence)) for sentence in unseen]
    return [
        (a, b)
        for a, (words_a, grams_a) in left
        for b, (words_b, grams_b) in right
        if jaccard(words_a, words_b) >= cap or jaccard(grams_a, grams_b) >= cap
    ]


def bio_faults(tags: Sequence[str]) -> list[str]:
    """What is wrong with a tag sequence: an unknown tag, or an I- that continues nothing."""
    faults = []
    for before, tag in zip(("O", *tags), tags, strict=False):
        if tag != "O" and (tag[:2] not in ("B-", "I-") or tag[2:] not in ENTITIES):
            faults.append(f"unknown tag {tag!r}")
        elif tag.startswith("I-") and before[2:] != tag[2:]:
            faults.append(f"{tag} after {before}")
    return faults


def leaks(task: str, train: Sequence[Row], dev: Sequence[Row], test: Sequence[Row]) -> list[tuple[str, str]]:
    """Pairs of rows too alike to sit on two sides of the split."""
    found = []
    for seen, unseen in ((train, dev), (train, test), (dev, test)):
        found += near_duplicates(map(text, seen), map(text, unseen), TEXT_CAP)
        if task == "address":
            found += near_duplicates(map(frame, seen), map(frame, unseen), FRAME_CAP)
            known = {place(row): text(row) for row in seen if place(row)}
            found += [(known[place(row)], text(row)) for row in unseen if place(row) in known]
    return found


@pytest.mark.parametrize("task", TASKS)
def test_sizes(task: str) -> None:
    counts = {split: len(rows(task, split)) for split in SPLITS}
    total = sum(counts.values())
    assert total >= LEAST_ROWS
    for split, share in SHARES.items():
        assert counts[split] / total == pytest.approx(share, abs=0.02), (split, counts)


@pytest.mark.parametrize("task", TASKS)
def test_the_readme_states_the_counts(task: str) -> None:
    counts = " | ".join(str(len(rows(task, split))) for split in SPLITS)
    lines = (DESK / "README.md").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.startswith(f"| `{task}` |") and f"| {counts} |" in line], counts


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("task", LABELS)
def test_text_rows(task: str, split: str) -> None:
    found = rows(task, split)
    assert all(set(row) == {"text", "label"} for row in found)
    assert all(row["text"].strip() == row["text"] != "" for row in found)
    counts = Counter(row["label"] for row in found)
    assert set(counts) == LABELS[task]
    assert min(counts.values()) >= LEAST_SHARE * len(found), counts


@pytest.mark.parametrize("split", SPLITS)
def test_address_rows(split: str) -> None:
    found = rows("address", split)
    assert all(set(row) == {"tokens", "tags"} for row in found)
    counts: Counter[str] = Counter()
    for row in found:
        assert len(row["tokens"]) == len(row["tags"]) > 0, row
        assert all(token and not re.search(r"\s", token) for token in row["tokens"]), row
        assert bio_faults(row["tags"]) == [], row
        counts.update({kind for kind, _ in entities(row)})
    assert set(counts) == ENTITIES
    assert min(counts.values()) >= LEAST_SHARE * len(found), counts


def test_pin_codes_are_six_digits_and_no_phone_number_is_given() -> None:
    for split in SPLITS:
        for row in rows("address", split):
            assert all(re.fullmatch(r"[1-9]\d{5}", words) for kind, words in entities(row) if kind == "PIN"), row
    for task in TASKS:
        for split in SPLITS:
            assert not [row for row in rows(task, split) if re.search(r"\d{7,}|@\w+\.", text(row))]


def test_address_messages_are_not_one_mould() -> None:
    frames = Counter(normal(frame(row)) for split in SPLITS for row in rows("address", split))
    assert len(frames) >= 150
    assert frames.most_common(1)[0][1] <= 3


@pytest.mark.parametrize("task", TASKS)
def test_no_row_appears_twice(task: str) -> None:
    counts = Counter(normal(text(row)) + text(row) for split in SPLITS for row in rows(task, split))
    assert [sentence for sentence, times in counts.items() if times > 1] == []


@pytest.mark.parametrize("task", TASKS)
def test_no_leak_between_splits(task: str) -> None:
    train, dev, test = (rows(task, split) for split in SPLITS)
    assert leaks(task, train, dev, test) == []


@pytest.mark.parametrize("task", TASKS)
def test_a_copied_train_row_is_a_leak(task: str) -> None:
    train, dev, test = (rows(task, split) for split in SPLITS)
    copied = next(row for row in train if len(normal(text(row)).split()) > 3)
    assert (text(copied), text(copied)) in leaks(task, train, dev, [*test, copied])


def test_a_lightly_edited_sentence_is_a_near_duplicate() -> None:
    seen = ["Where is my refund? I returned the bag 2 weeks ago."]
    assert near_duplicates(seen, ["where is my refund i returned the bags 3 weeks ago"], TEXT_CAP)
    assert near_duplicates(seen, ["The pressure cooker whistle leaks steam."], TEXT_CAP) == []


def address(tokens: str, tags: str) -> Row:
    return {"tokens": tokens.split(), "tags": tags.split()}


def test_the_same_frame_around_another_address_is_a_leak() -> None:
    tags = "O O O O B-LOCALITY I-LOCALITY O B-CITY"
    here = address("Please bring it to Vijay Nagar , Indore", tags)
    there = address("Please bring it to Salt Lake , Kolkata", tags)
    assert leaks("address", [here], [], [there]) == [(frame(here), frame(there))]


def test_the_same_address_in_another_frame_is_a_leak() -> None:
    here = address("Please bring it to Vijay Nagar , Indore", "O O O O B-LOCALITY I-LOCALITY O B-CITY")
    again = address("kal tak Indore pahunchao yaar , matlab Vijay Nagar", "O O B-CITY O O O O B-LOCALITY I-LOCALITY")
    assert leaks("address", [here], [], [again]) == [(text(here), text(again))]


def test_bio_faults_are_named() -> None:
    assert bio_faults(["B-CITY", "I-CITY", "O"]) == []
    assert bio_faults(["O", "I-CITY", "B-CITY", "I-PIN", "B-TOWN"]) == [
        "I-CITY after O",
        "I-PIN after B-CITY",
        "unknown tag 'B-TOWN'",
    ]
