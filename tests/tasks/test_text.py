import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from graftwork.errors import BackboneError, DataError, InputTooLong, UserError
from graftwork.tasks.encoded import IGNORED, Encoded
from graftwork.tasks.text import TextEncoder, vocabulary_digest
from graftwork.tasks.words import Words
from tests.tasks import vocabularies
from tests.tasks.vocabularies import NAMES, fresh, tokenizer

anything = st.text(max_size=12)
families = st.sampled_from(NAMES)


def encoder(name: str, max_length: int = 64, too_long: str = "refuse") -> TextEncoder:
    return TextEncoder(tokenizer(name), max_length, too_long)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("pair", [None, "and Chennai", ""])
def test_texts_are_encoded_as_the_tokenizer_does(name: str, pair: str | None) -> None:
    expected = tokenizer(name)(["the quick fox"], None if pair is None else [pair])
    encoded = encoder(name).text("the quick fox", pair)
    assert list(encoded.input_ids) == expected["input_ids"][0]
    assert (None if encoded.token_type_ids is None else [list(encoded.token_type_ids)]) == expected.get(
        "token_type_ids"
    )
    assert encoded.cut == 0
    assert encoded.labels is None


def test_an_empty_second_text_is_still_a_pair() -> None:
    """Outside a batch, transformers drops an empty second text and encodes a single text."""
    encoded = encoder("minilm").text("fox", "")
    assert tokenizer("minilm").convert_ids_to_tokens(encoded.input_ids) == ["[CLS]", "fox", "[SEP]", "[SEP]"]
    assert encoded.token_type_ids == (0, 0, 0, 1)
    assert encoded != encoder("minilm").text("fox")


@pytest.mark.parametrize("name", ["roberta", "gpt2", "llama3", "gemma"])
def test_words_keep_the_space_between_them(name: str) -> None:
    """Where the space is part of a piece, words come out as in running text that begins with a space."""
    words = ["quick", "fox,", "ships", "मेरा"]
    split = encoder(name).words(Words.of_tokens(words))
    running = tokenizer(name)(" " + " ".join(words))
    assert list(split.input_ids) == running["input_ids"]
    glued = tokenizer(name)([words], is_split_into_words=True)["input_ids"][0]
    assert list(split.input_ids) != glued


def test_words_of_a_byte_level_vocabulary_equal_add_prefix_space() -> None:
    words = ["Asha", "", "lives", " at", "12/4", "…"]
    expected = tokenizer("roberta_prefix")([words], is_split_into_words=True)
    for name in ("roberta", "roberta_prefix"):
        encoded = encoder(name).words(Words.of_tokens(words))
        assert list(encoded.input_ids) == expected["input_ids"][0]
        assert list(encoded.word_ids) == expected.word_ids(0)


@pytest.mark.parametrize("name", ["minilm", "roberta_prefix", "xlmr"])
def test_words_are_left_alone_where_no_space_is_missing(name: str) -> None:
    words = ["quick", "fox", "ships"]
    expected = tokenizer(name)([words], is_split_into_words=True)
    assert list(encoder(name).words(Words.of_tokens(words)).input_ids) == expected["input_ids"][0]


def test_words_are_left_alone_where_a_space_would_not_help() -> None:
    """Llama 2's way: the normaliser puts a block before every word, and a piece may span two words of running text."""
    one = TextEncoder(vocabularies.llama2(), 16)
    assert one.tokenizer.tokenize("a a") == ["▁a▁a"]
    split = one.words(Words.of_tokens(["a", "a"]))
    assert one.tokenizer.convert_ids_to_tokens(split.input_ids) == ["▁a", "▁a"]


@given(families, st.lists(anything, min_size=1, max_size=6))
def test_every_piece_lies_in_its_word(name: str, words: list[str]) -> None:
    encoded = TextEncoder(tokenizer(name), 512).words(Words.of_tokens(["a", *words]))
    counted = [word for word in encoded.word_ids if word is not None]
    assert counted == sorted(counted)
    assert len(encoded.word_ids) == len(encoded.input_ids)
    first = encoded.first_pieces()
    assert all(
        encoded.word_ids[piece] == word and word not in encoded.word_ids[:piece] for word, piece in first.items()
    )
    # Each word alone has the pieces it has among the others: neighbours never shift or change them.
    for word, text in enumerate(["a", *words]):
        ids = [i for i, owner in zip(encoded.input_ids, encoded.word_ids, strict=True) if owner == word]
        alone = TextEncoder(tokenizer(name), 512).words(Words.of_tokens([text, "a"]))
        assert ids == [i for i, owner in zip(alone.input_ids, alone.word_ids, strict=True) if owner == 0]


def test_too_long_is_refused_with_both_numbers() -> None:
    text = "fox " * 30
    with pytest.raises(InputTooLong, match=r"32 pieces and the limit is 16: shorten it or split it in two"):
        encoder("minilm", 16).text(text)
    with pytest.raises(InputTooLong, match="32 pieces"):
        encoder("minilm", 16).words(Words.of_text(text))
    assert len(encoder("minilm", 32).text(text).input_ids) == 32


def test_too_long_is_truncated_and_counted() -> None:
    truncated = encoder("minilm", 16, "truncate").text("fox " * 30)
    assert len(truncated.input_ids) == 16
    assert truncated.cut == 16
    assert truncated.input_ids[-1] == tokenizer("minilm").sep_token_id
    pair = encoder("minilm", 16, "truncate").text("fox " * 30, "the quick")
    assert pair.token_type_ids is not None
    assert sum(pair.token_type_ids) == 3  # the short side stays whole, with its [SEP]


@pytest.mark.parametrize("name", NAMES)
def test_truncating_leaves_nothing_behind(name: str) -> None:
    own = fresh(name)
    before = TextEncoder(own, 512).text("the quick fox ships a parcel")
    TextEncoder(own, 6, "truncate").text("the quick fox ships a parcel")
    assert TextEncoder(own, 512).text("the quick fox ships a parcel") == before
    assert before.cut == 0


def test_limits_that_the_tokenizer_cannot_keep_are_refused() -> None:
    with pytest.raises(
        UserError, match=r"max_length is 513; this tokenizer \(BertTokenizer\) allows at least 5 and at most 512"
    ):
        encoder("minilm", 513)
    with pytest.raises(UserError, match=r"max_length is 3; .* allows at least 4$"):
        encoder("llama3", 3)


def test_a_tokenizer_that_is_not_fast_is_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(BackboneError, match="the tokenizer Slow is not a fast tokenizer"):
        TextEncoder(Slow(), 16)
    with pytest.raises(BackboneError, match="Slow is not a fast tokenizer, so its vocabulary has no digest"):
        vocabulary_digest(Slow())


def test_a_text_without_any_piece_is_refused() -> None:
    with pytest.raises(DataError, match="it gives no piece at all; leave the row out"):
        encoder("gpt2").text("")
    with pytest.raises(DataError, match="no piece at all"):
        encoder("gpt2").words(Words.of_tokens([""]))
    assert len(encoder("minilm").text("").input_ids) == 2  # [CLS] [SEP] are pieces


@given(families, st.lists(anything.map(lambda text: "x" + text), min_size=1, max_size=5))
def test_padding_adds_only_what_the_mask_hides(name: str, texts: list[str]) -> None:
    one = TextEncoder(tokenizer(name), 512)
    rows = [one.text(text) for text in texts]
    batch = one.pad(rows)
    longest = max(len(row.input_ids) for row in rows)
    assert set(batch) == {"input_ids", "attention_mask"} | ({"token_type_ids"} if name == "minilm" else set())
    for tensor in batch.values():
        assert tensor.shape == (len(rows), longest)
        assert tensor.dtype == torch.long
    for place, row in enumerate(rows):
        length = len(row.input_ids)
        assert batch["attention_mask"][place].tolist() == [1] * length + [0] * (longest - length)
        assert batch["input_ids"][place, :length].tolist() == list(row.input_ids)
        assert batch["input_ids"][place, length:].tolist() == [one.pad_id] * (longest - length)


def test_padding_is_on_the_right_whatever_the_tokenizer_prefers() -> None:
    own = fresh("minilm")
    own.padding_side = "left"
    one = TextEncoder(own, 64)
    assert one.pad([one.text("fox"), one.text("fox fox")])["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]


@pytest.mark.parametrize(("name", "piece"), [("minilm", "[PAD]"), ("roberta", "<pad>"), ("gpt2", "<|endoftext|>")])
def test_the_padding_piece_falls_back_to_end_of_sequence(name: str, piece: str) -> None:
    assert tokenizer(name).convert_ids_to_tokens(encoder(name).pad_id) == piece


def test_labels_are_padded_by_their_kind() -> None:
    one = encoder("minilm")
    short, long = one.text("fox"), one.text("fox fox")
    classes = one.pad([replace(short, labels=1), replace(long, labels=0)])["labels"]
    assert classes.dtype == torch.long
    assert classes.tolist() == [1, 0]
    values = one.pad([replace(short, labels=1.0), replace(long, labels=0.5)])["labels"]
    assert values.dtype == torch.float32
    assert values.tolist() == [1.0, 0.5]
    tags = one.pad([replace(short, labels=(IGNORED, 2, IGNORED)), replace(long, labels=(IGNORED, 1, 0, IGNORED))])[
        "labels"
    ]
    assert tags.tolist() == [[-100, 2, -100, -100], [-100, 1, 0, -100]]
    assert "labels" not in one.pad([short, long])


def test_two_threads_get_what_one_gets() -> None:
    one = encoder("minilm")
    texts = [f"the quick fox number {number}" for number in range(200)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(one.text, texts)) == [one.text(text) for text in texts]


@pytest.mark.parametrize("name", NAMES)
def test_the_digest_does_not_move_with_use(name: str, tmp_path: Path) -> None:
    own = fresh(name)
    digest = vocabulary_digest(own)
    assert len(digest) == 64
    own(["a", "a b c d e f"], truncation=True, max_length=4)
    if own.pad_token is not None:
        own(["a", "a b c"], padding=True)
    own.padding_side = "left"
    assert vocabulary_digest(own) == digest
    own.save_pretrained(tmp_path)
    assert vocabulary_digest(type(own).from_pretrained(tmp_path)) == digest
    assert vocabulary_digest(fresh(name)) == digest


def test_the_digest_is_the_same_in_another_process(minilm_folder: Path) -> None:
    script = (
        "from transformers import AutoTokenizer; from graftwork.tasks.text import vocabulary_digest;"
        f"print(vocabulary_digest(AutoTokenizer.from_pretrained({str(minilm_folder)!r})))"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == vocabulary_digest(tokenizer("minilm"))


def test_the_digest_tells_vocabularies_and_settings_apart() -> None:
    assert len({vocabulary_digest(tokenizer(name)) for name in NAMES}) == len(NAMES)
    own = fresh("minilm")
    digest = vocabulary_digest(own)
    own.add_tokens(["hyderabadi"])
    assert vocabulary_digest(own) != digest
    cased = fresh("minilm")
    assert isinstance(cased, PreTrainedTokenizerFast)
    cased.backend_tokenizer.normalizer.lowercase = False
    assert vocabulary_digest(cased) != digest
    merged = vocabularies.byte_level()
    fewer = dict(merged, merges=merged["merges"][:-1])  # type: ignore[index]
    assert vocabulary_digest(vocabularies.GPT2Tokenizer(**fewer)) != vocabulary_digest(tokenizer("gpt2"))


def test_first_pieces_skips_words_without_any() -> None:
    row = Encoded(input_ids=(1, 2, 3, 4, 5), token_type_ids=None, word_ids=(None, 0, 0, 2, None))
    assert row.first_pieces() == {0: 1, 2: 3}
