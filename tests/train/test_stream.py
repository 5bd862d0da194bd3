"""Plain text for language models: every piece in its place, in little memory, in an order that the seed decides."""

import os
import random
import resource
import tracemalloc
from pathlib import Path

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from graftwork import workflow
from graftwork.errors import DataError, RecipeError
from graftwork.recipe import override
from graftwork.registry.store import Registry
from graftwork.tasks.encoded import IGNORED
from graftwork.tasks.language import MaskedLanguage
from graftwork.tasks.text import TextEncoder
from graftwork.train.data import load_data
from graftwork.train.plain import CHUNK, MOST_HELD, scan
from graftwork.train.run import train
from graftwork.train.sampler import ShuffledSampler
from graftwork.train.stream import TextBlocks, tokenised
from tests.tasks.vocabularies import NAMES, tokenizer
from tests.train import small

LENGTH = 16


def encoder(name: str = "minilm", length: int = LENGTH) -> TextEncoder:
    return TextEncoder(tokenizer(name), length, "truncate")


def written(file: Path, lines: list[str]) -> Path:
    file.write_text("\n".join(lines), "utf8")
    return file


LINES = ["the quick brown fox", "", "ships a parcel to Hyderabad", "   ", "and Chennai", "Asha lives at Pune\r"] * 5


@pytest.mark.parametrize("name", NAMES)
def test_blocks_hold_every_piece_of_every_line_in_order(name: str, tmp_path: Path) -> None:
    reads, file = encoder(name), written(tmp_path / "a.txt", LINES)
    blocks = TextBlocks(tokenised(scan(file), reads, tmp_path / "cache"), reads, None)
    own = reads.tokenizer
    between = [own.sep_token_id if own.sep_token_id is not None else own.eos_token_id]
    expected: list[int] = []
    for line in LINES:
        if line.strip():
            expected += own(line.strip(), add_special_tokens=False)["input_ids"] + between
    frame = own("x")["input_ids"]
    start = frame.index(own("x", add_special_tokens=False)["input_ids"][0])
    before, after = frame[:start], frame[start + len(own("x", add_special_tokens=False)["input_ids"]) :]
    inner = LENGTH - len(before) - len(after)
    assert len(blocks) == -(-len(expected) // inner) > 2
    found: list[int] = []
    for number in range(len(blocks)):
        row = {key: value[0].tolist() for key, value in blocks[number].items()}
        length = sum(row["attention_mask"])
        ids = row["input_ids"][:length]
        assert ids[: len(before)] == before
        assert ids[length - len(after) :] == after
        assert row["labels"] == row["input_ids"]
        assert length == LENGTH or number == len(blocks) - 1
        assert ("token_type_ids" in row) == ("token_type_ids" in own("x"))
        found += ids[len(before) : length - len(after)]
    assert found == expected


def test_a_batch_is_its_rows_side_by_side_and_the_last_block_is_padded(tmp_path: Path) -> None:
    reads = encoder()
    blocks = TextBlocks(tokenised(scan(written(tmp_path / "a.txt", LINES)), reads, tmp_path / "cache"), reads, None)
    last = len(blocks) - 1
    batch = blocks.__getitems__([1, last, 0])
    for place, row in enumerate((1, last, 0)):
        alone = blocks[row]
        length = alone["input_ids"].shape[1]
        for key in batch:
            assert batch[key][place, :length].tolist() == alone[key][0].tolist()
        assert not batch["attention_mask"][place, length:].any()
        assert (batch["labels"][place, length:] == IGNORED).all()
    assert blocks[last]["input_ids"].shape[1] < LENGTH


def test_masked_pieces_are_hidden_and_separators_never(tmp_path: Path) -> None:
    reads, file = encoder(), written(tmp_path / "a.txt", LINES * 10)
    redraw = MaskedLanguage((), LENGTH).redraw(reads, 3)
    blocks = TextBlocks(tokenised(scan(file), reads, tmp_path / "cache"), reads, redraw)
    plain = TextBlocks(tokenised(scan(file), reads, tmp_path / "cache"), reads, None)
    first, clear = blocks.__getitems__([0, 4, 2]), plain.__getitems__([0, 4, 2])
    asked = first["labels"] != IGNORED
    assert 0.08 < float(asked.float().mean()) < 0.2
    assert (first["labels"][asked] == clear["input_ids"][asked]).all()
    special = set(reads.tokenizer.all_special_ids)
    assert not special & set(first["labels"][asked].tolist())
    assert (blocks.__getitems__([4])["labels"] == first["labels"][1:2]).all()  # by row, not by batch
    blocks.set_epoch(1)
    assert (blocks.__getitems__([0, 4, 2])["labels"] != first["labels"]).any()


@given(st.text(alphabet=st.sampled_from("ab é世\n\r\u2028 "), max_size=200), st.integers(4, 40))
def test_any_text_is_read_as_its_lines_whatever_is_read_at_once(text: str, size: int) -> None:
    file = Path(os.environ["GRAFTWORK_HOME"]) / "any.txt"
    file.write_bytes(b"\xef\xbb\xbf" + text.encode())
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if not lines:
        with pytest.raises(DataError, match="holds no line of text"):
            scan(file, size)
        return
    assert [line for some in scan(file).batches() for line in some] == lines
    assert "".join("".join(line.split()) for some in scan(file, size).batches() for line in some) == "".join(
        text.split()
    )


def test_a_line_longer_than_what_is_read_at_once_comes_in_parts_cut_at_a_space(tmp_path: Path) -> None:
    file = written(tmp_path / "a.txt", [" ".join(["word"] * 500), "世" * 400, "end"])
    found = [line for some in scan(file, 100).batches() for line in some]
    words = [line for line in found if "word" in line]
    assert len(words) > 10
    assert all(set(line.split()) == {"word"} for line in words)
    assert "".join(found).count("世") == 400
    assert found[-1] == "end"


def test_what_is_no_text_is_named_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(b"one\ntwo\nth\xff\xfeee\n")
    with pytest.raises(DataError, match=r"a\.txt:3: not UTF-8 text \(byte 2 of the line\)"):
        scan(file)
    with pytest.raises(DataError, match=r"b\.txt: cannot be read: No such file"):
        scan(tmp_path / "b.txt")


def test_held_out_lines_are_no_part_of_what_is_trained_on(tmp_path: Path) -> None:
    file = written(tmp_path / "a.txt", [f"line {number}" for number in range(300)])
    kept, held = scan(file).hold_out(0)
    assert len(held) == 30
    assert len(kept) == 270
    rest = [line for some in kept.batches() for line in some]
    assert sorted([*rest, *held]) == sorted(f"line {number}" for number in range(300))
    again, other = scan(file).hold_out(0), scan(file).hold_out(1)
    assert again == (kept, held)
    assert other[1] != held
    assert len({scan(file).digest, kept.digest, other[0].digest}) == 3
    many = written(tmp_path / "b.txt", [f"line {number}" for number in range(20_000)])
    assert len(scan(many).hold_out(0)[1]) == MOST_HELD


def test_ids_that_lie_beyond_the_number_of_pieces_are_kept(tmp_path: Path) -> None:
    model = WordLevel({"[UNK]": 0, "the": 1, "fox": 70_000}, unk_token="[UNK]")
    made = Tokenizer(model)
    made.pre_tokenizer = Whitespace()  # type: ignore[assignment]
    reads = TextEncoder(PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[UNK]"), LENGTH, "truncate")
    assert list(tokenised(scan(written(tmp_path / "a.txt", ["the fox"])), reads, tmp_path).ids) == [1, 70_000]


def test_a_text_is_tokenised_once_and_anew_where_anything_differs(tmp_path: Path) -> None:
    reads, cache = encoder(), tmp_path / "cache"
    text = scan(written(tmp_path / "a.txt", LINES))
    first = tokenised(text, reads, cache)
    (folder,) = [path for path in cache.iterdir() if path.is_dir()]
    stamp = (folder / "ids").stat().st_mtime_ns
    longer = tokenised(text, encoder(length=32), cache)
    assert (folder / "ids").stat().st_mtime_ns == stamp
    assert (numpy.asarray(longer.ids) == numpy.asarray(first.ids)).all()
    assert longer.content == 30
    with (folder / "ids").open("r+b") as file:  # a bent disk
        file.write(b"\x07")
    assert (numpy.asarray(tokenised(text, reads, cache).ids) == numpy.asarray(longer.ids))[1:].all()
    tokenised(text.hold_out(0)[0], reads, cache)
    tokenised(text, encoder("gpt2"), cache)
    assert len([path for path in cache.iterdir() if path.is_dir()]) == 3


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    reads = TextEncoder(small.tokenizer(), 32, "truncate")
    draw = random.Random(0)
    words = [*small.GOOD, *small.BAD, *small.FILLERS]
    part = "\n".join(" ".join(draw.choices(words, k=12)) for _ in range(2000)) + "\n"  # about 100 kB

    def peak(times: int) -> int:
        file = tmp_path / f"{times}.txt"
        file.write_text(part * times, "utf8")
        tracemalloc.start()
        stream = tokenised(scan(file, 1 << 15), reads, tmp_path / "cache")
        blocks = TextBlocks(stream, reads, None)
        order = iter(ShuffledSampler(len(blocks), 0))
        for _ in range(5):
            blocks.__getitems__([next(order) for _ in range(8)])
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    small_one, large_one = peak(2), peak(14)
    assert large_one < 1.2 * small_one + 100_000
    assert small_one < 12 * (1 << 20)


@pytest.mark.full
def test_a_process_does_not_grow_with_the_file(tmp_path: Path) -> None:
    reads = TextEncoder(small.tokenizer(), 32, "truncate")
    part = (" ".join([*small.GOOD, *small.BAD, *small.FILLERS]) + "\n") * 1000

    def peak(times: int) -> int:
        file = tmp_path / f"{times}.txt"
        with file.open("w") as out:
            for _ in range(times):
                out.write(part)
        tokenised(scan(file), reads, tmp_path / "cache")
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    before = peak(4 * CHUNK // len(part))
    assert peak(40 * CHUNK // len(part)) < before + 32 * (1 << 20)


@given(st.integers(1, 3000), st.integers(0, 5), st.integers(0, 5))
def test_every_index_once_in_an_order_by_seed_and_epoch(count: int, seed: int, epoch: int) -> None:
    order = list(ShuffledSampler(count, seed, epoch))
    assert sorted(order) == list(range(count))
    assert order == list(ShuffledSampler(count, seed, epoch))
    if count > 20:
        assert order != list(ShuffledSampler(count, seed, epoch + 1))
        assert order != list(ShuffledSampler(count, seed + 1, epoch))


def test_the_epochs_of_one_seed_are_not_those_of_another() -> None:
    orders = {tuple(ShuffledSampler(100, seed, epoch)) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16


def test_a_shuffle_is_one() -> None:
    """Places and neighbours as in a random permutation: no correlation, and neighbours apart."""
    count = 20_000
    order = numpy.array(list(ShuffledSampler(count, 0)))
    assert abs(numpy.corrcoef(order, numpy.arange(count))[0, 1]) < 0.03  # a standard deviation is 0.007
    assert abs(numpy.abs(numpy.diff(order)).mean() / count - 1 / 3) < 0.01
    with pytest.raises(ValueError, match="count 0"):
        ShuffledSampler(0, 0)


@pytest.mark.parametrize("kind", ["masked_lm", "causal_lm"])
def test_a_language_model_is_trained_on_plain_text(kind: str, tmp_path: Path) -> None:
    lines = [row["text"] for row in small.texts(400)]
    base = small.model_folder(tmp_path / "base")
    own = small.tokenizer()
    own.mask_token = "[UNK]"
    own.save_pretrained(base)
    (tmp_path / "en.txt").write_text("\n".join(lines), "utf8")
    (tmp_path / "test.txt").write_text("\n\n".join(lines[:20]), "utf8")
    text = {"task.kind": kind, "data.train": str(tmp_path / "en.txt"), "data.dev": None}
    made = small.recipe(tmp_path, {**text, "data.test": str(tmp_path / "test.txt"), "training.epochs": 3})
    done = train(made)
    assert done.data["rows"] == {"train": 360, "dev": 40, "test": 20}
    assert done.data["source"] == {"train": "en.txt", "test": "test.txt"}
    assert any("40 of 400 lines of train are held out as dev (seed 0)" in note for note in done.notes)
    scores = [point["dev"]["log_likelihood"] for point in done.history if "dev" in point]
    assert scores[-1] > scores[0]
    blocks = done.steps // 3 * 8
    pieces = sum(len(line.split()) + 1 for line in lines) * 0.9
    assert blocks - 8 < pieces / 30 < blocks + 8
    registry = Registry(tmp_path / "registry")
    registry.push(done.package, "en")
    engine = workflow.open_engine(str(base), registry)
    again = workflow.evaluate(engine, "en", str(tmp_path / "test.txt"))
    assert again.scores == pytest.approx(done.scores["test"], abs=1e-4)


def test_every_problem_of_plain_text_is_told(tmp_path: Path) -> None:
    made = small.recipe(tmp_path, {})
    (tmp_path / "bad.txt").write_bytes(b"\xff")
    (tmp_path / "dev.txt").write_bytes(b"one\n\xff\n")
    (tmp_path / "one.txt").write_text("alone")
    text = {"task.kind": "causal_lm", "data.train": str(tmp_path / "bad.txt")}
    with pytest.raises(DataError) as told:
        load_data(override(made, {**text, "data.dev": str(tmp_path / "dev.txt")}))
    assert len(told.value.problems) == 2
    assert "bad.txt:1: not UTF-8" in str(told.value)
    assert "dev.txt:2: not UTF-8" in str(told.value)
    with pytest.raises(DataError, match=r"one\.txt: one line cannot be split; name a file as data\.dev"):
        load_data(override(made, {**text, "data.train": str(tmp_path / "one.txt"), "data.dev": None}))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {},
            r"data\.train: '.*en\.txt' is plain text, for masked_lm and causal_lm; classification needs rows",
        ),
        ({"task.kind": "masked_lm", "data.columns": {"text": "line"}}, r"data\.columns: plain text has no columns"),
        (
            {"task.kind": "causal_lm", "training.prefix_cache": "auto", "training.base_dropout": False},
            r"training\.prefix_cache: 'auto': plain text is streamed; set it to off",
        ),
    ],
)
def test_what_has_no_meaning_with_plain_text(tmp_path: Path, changes: dict[str, object], says: str) -> None:
    made = small.recipe(tmp_path, {})
    (tmp_path / "en.txt").write_text("one\ntwo\n")
    with pytest.raises(RecipeError, match=says):
        override(made, {"data.train": str(tmp_path / "en.txt"), **changes})
