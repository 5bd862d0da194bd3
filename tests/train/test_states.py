"""States of texts in a file: any batch gets them back; what is torn, bent or too much is noticed."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from graftwork.errors import UserError
from graftwork.train.states import Layout, States, Store, _size, cache_root

LAYOUT = Layout(numpy.array([3, 1, 4]), 5, torch.float32)
TRUE = torch.arange(40, dtype=torch.float32).view(8, 5)


def filled(value: Tensor = TRUE) -> Callable[[States], None]:
    """Fills an entry with the states of all texts, in two batches of padded rows."""

    def fill(states: States) -> None:
        for texts in ([2, 0], [1]):
            lengths = LAYOUT.lengths[texts]
            rows = torch.full((len(texts), int(lengths.max()), 5), torch.nan)
            for place, text in enumerate(texts):
                start, length = LAYOUT.starts[text], LAYOUT.lengths[text]
                rows[place, :length] = value[start : start + length]
            states.put(numpy.array(texts), rows)

    return fill


def never(states: States) -> None:
    raise AssertionError("it was there")


@given(st.data())
def test_any_batch_gets_back_what_was_put(data: st.DataObject) -> None:
    lengths = numpy.array(data.draw(st.lists(st.integers(1, 7), min_size=1, max_size=9)))
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float64]))
    layout = Layout(lengths, data.draw(st.integers(1, 4)), dtype)
    true = [torch.randn(int(length), layout.width).to(dtype) for length in lengths]
    table = torch.zeros(layout.tokens, layout.width, dtype=dtype)
    states = States(table, layout)
    for batch in data.draw(st.permutations(range(len(lengths)))):
        states.put(numpy.array([batch]), torch.nn.functional.pad(true[batch], (0, 0, 0, 2), value=torch.nan)[None])
    assert torch.equal(table, torch.cat(true))
    first = data.draw(st.integers(0, len(lengths) - 1))
    texts = numpy.array(data.draw(st.lists(st.integers(0, len(lengths) - 1 - first), min_size=1, max_size=5)))
    width = int(lengths[first + texts].max()) + data.draw(st.integers(0, 2))
    found = States(table, layout, first).gather(texts, width)
    assert found.shape == (len(texts), width, layout.width)
    for place, text in enumerate(first + texts):
        length = int(lengths[text])
        assert torch.equal(found[place, :length], true[text])
        assert not found[place, length:].any()


def test_an_entry_is_made_once(tmp_path: Path) -> None:
    store = Store(tmp_path, 10**6)
    assert torch.equal(store.open("a", LAYOUT, filled()), TRUE)
    again = store.open("a", LAYOUT, never)
    assert torch.equal(again, TRUE)
    again[0] = -1  # what reads cannot write
    assert torch.equal(store.open("a", LAYOUT, never), TRUE)
    assert (tmp_path / "a" / "states").stat().st_size == LAYOUT.bytes == 160


def bent(folder: Path) -> None:
    data = bytearray((folder / "states").read_bytes())
    data[7] ^= 1
    (folder / "states").write_bytes(data)


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "a bit": bent,
    "torn": lambda folder: (folder / "states").write_bytes((folder / "states").read_bytes()[:-4]),
    "no file": lambda folder: (folder / "states").unlink(),
    "no seal": lambda folder: (folder / "sealed.json").unlink(),
    "an empty seal": lambda folder: (folder / "sealed.json").write_text('{"files": {}}'),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_damaged_is_made_anew(tmp_path: Path, damage: str) -> None:
    store = Store(tmp_path, 10**6)
    store.open("a", LAYOUT, filled())
    DAMAGE[damage](tmp_path / "a")
    assert torch.equal(store.open("a", LAYOUT, filled(TRUE + 1)), TRUE + 1)
    assert torch.equal(store.open("a", LAYOUT, never), TRUE + 1)


def test_a_process_that_was_killed_leaves_nothing_that_counts(tmp_path: Path) -> None:
    def fill(states: States) -> None:
        filled()(states)
        os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if not child:
        Store(tmp_path, 10**6).open("a", LAYOUT, fill)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert [path.name[0] for path in tmp_path.iterdir() if path.is_dir()] == ["."]
    assert torch.equal(Store(tmp_path, 10**6).open("a", LAYOUT, filled()), TRUE)
    assert {path.name for path in tmp_path.iterdir()} == {"a", "lock"}


def test_an_error_while_it_is_made_leaves_nothing(tmp_path: Path) -> None:
    def fill(states: States) -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        Store(tmp_path, 10**6).open("a", LAYOUT, fill)
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_what_was_used_longest_ago_goes_first(tmp_path: Path) -> None:
    seal = 200  # at most
    store = Store(tmp_path, 2 * (LAYOUT.bytes + seal))
    for name in ("a", "b"):
        store.open(name, LAYOUT, filled())
    held = store.open("b", LAYOUT, never)
    os.utime(tmp_path / "b", ns=(1, 1))  # b: long ago
    store.open("c", LAYOUT, filled())
    assert {path.name for path in tmp_path.iterdir()} == {"a", "c", "lock"}
    assert torch.equal(held, TRUE)  # who has it open keeps it
    store.open("a", LAYOUT, never)  # used: now c is the older one
    os.utime(tmp_path / "c", ns=(2, 2))
    store.open("d", LAYOUT, filled())
    assert {path.name for path in tmp_path.iterdir()} == {"a", "d", "lock"}


def test_room_is_what_is_allowed_and_what_the_disk_could_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    assert Store(tmp_path / "not yet" / "there", 5000).room == 1000
    assert Store(tmp_path, 600).room == 600
    assert Store(tmp_path).room == 250
    Store(tmp_path).open("a", LAYOUT, filled())
    held = sum(path.stat().st_size for path in (tmp_path / "a").iterdir())
    assert Store(tmp_path).room == (1000 + held) // 4


def test_an_entry_that_another_process_removes_takes_no_room(tmp_path: Path) -> None:
    assert _size(tmp_path / "gone") == 0


def test_a_disk_that_refuses_is_an_error_that_names_the_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/prefix: cannot be written"):
        Store(tmp_path / "file" / "prefix", 10**6).open("a", LAYOUT, never)


def test_where_states_lie(tmp_path: Path) -> None:
    assert cache_root({"GRAFTWORK_HOME": str(tmp_path)}) == tmp_path / "cache" / "prefix"
    assert cache_root({}) == Path.home() / ".graftwork" / "cache" / "prefix"
