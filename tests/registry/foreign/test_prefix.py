"""AdapterHub's prefixes, cut into layers, hold the keys and values that its own network makes for them."""

from pathlib import Path

import pytest
import torch

from graftwork.errors import PackageError
from graftwork.registry.foreign.adapterhub import read_adapterhub
from graftwork.registry.foreign.imported import Facts, Imported
from tests.registry.foreign.hub_files import WIDTH, meta, rand, write

LENGTH, HEADS, EACH, LAYERS = 3, 2, 4, 3
CONFIG = {"architecture": "prefix_tuning", "prefix_length": LENGTH, "bottleneck_size": 5}
FACTS = Facts(kv={f"layer.{layer}/attn.kv": (HEADS, EACH) for layer in range(LAYERS)})
ROOT = "bert.prefix_tuning.prefix_tunings.a.self_prefix."


def with_copies(theirs: dict[str, torch.Tensor], layers: int = LAYERS) -> dict[str, torch.Tensor]:
    """Every attention module stores the whole group again."""
    pools = [f"bert.encoder.layer.{n}.attention.self.prefix_tuning.pool.prefix_tunings." for n in range(layers)]
    return theirs | {
        pool + key.partition("prefix_tunings.")[2]: value for pool in pools for key, value in theirs.items()
    }


def one(folder: Path, facts: Facts = FACTS) -> Imported:
    (found,) = read_adapterhub(folder, facts=facts)
    return found


def network(layers: int) -> dict[str, torch.Tensor]:
    made = layers * 2 * HEADS * EACH
    return {
        ROOT + "wte.weight": rand(LENGTH, WIDTH),
        ROOT + "control_trans.0.weight": rand(5, WIDTH),
        ROOT + "control_trans.0.bias": rand(5),
        ROOT + "control_trans.2.weight": rand(made, 5),
        ROOT + "control_trans.2.bias": rand(made),
    }


@pytest.mark.parametrize("leave_out", [[], [1]])
def test_a_flat_prefix(tmp_path: Path, leave_out: list[int]) -> None:
    kept = [layer for layer in range(LAYERS) if layer not in leave_out]
    vector = rand(LENGTH * 2 * len(kept) * HEADS * EACH)
    config = CONFIG | {"flat": True, "leave_out": leave_out}
    found = one(write(tmp_path / "a", meta(config), with_copies({ROOT + "control_trans": vector})))
    theirs = vector.view(LENGTH, len(kept) * 2, HEADS, EACH).permute(1, 2, 0, 3).split(2)  # as AdapterHub reads it
    for number, layer in enumerate(kept):
        for part, name in enumerate(("keys", "values")):
            own = found.tensors[f"adapter/layer.{layer}/attn.kv/{name}"]  # (P, H, W)
            assert torch.equal(own.transpose(0, 1), theirs[number][part])
    assert len(found.sites) == len(kept)
    assert sum(not fate.target for fate in found.fates) == LAYERS


@pytest.mark.parametrize("leave_out", [[], [0]])
def test_a_prefix_made_by_a_network(tmp_path: Path, leave_out: list[int]) -> None:
    kept = [layer for layer in range(LAYERS) if layer not in leave_out]
    theirs = network(len(kept))
    folder = write(tmp_path / "a", meta(CONFIG | {"leave_out": leave_out}), with_copies(theirs))
    found = one(folder, Facts())  # the copies say how many layers there are
    inner = theirs[ROOT + "wte.weight"] @ theirs[ROOT + "control_trans.0.weight"].T
    hidden = torch.tanh(inner + theirs[ROOT + "control_trans.0.bias"])
    made = hidden @ theirs[ROOT + "control_trans.2.weight"].T + theirs[ROOT + "control_trans.2.bias"]
    made = made.view(LENGTH, len(kept) * 2, HEADS * EACH)
    shared = {key.removeprefix("adapter/shared/attn."): value for key, value in found.tensors.items()}
    mine = torch.tanh(shared["embedding"] @ shared["down.weight"].T + shared["down.bias"])
    for number, layer in enumerate(kept):
        site = f"adapter/layer.{layer}/attn.kv/project."
        own = mine @ found.tensors[site + "weight"].T + found.tensors[site + "bias"]
        torch.testing.assert_close(own, made[:, 2 * number : 2 * number + 2].flatten(1))


def test_gates_and_t5s_three_places(tmp_path: Path) -> None:
    config = CONFIG | {"flat": True, "use_gating": True}
    kv = {f"{s}.layer.{n}/attn.kv": (HEADS, EACH) for s in ("encoder", "decoder") for n in range(2)}
    kv |= {f"decoder.layer.{n}/cross.kv": (HEADS, EACH) for n in range(2)}
    size = LENGTH * 2 * 2 * HEADS * EACH
    theirs = {
        f"prefix_tuning.prefix_tunings.a.{place}.control_trans": rand(size) + number
        for number, place in enumerate(("encoder_prefix", "self_prefix", "cross_prefix"))
    }
    gate = "decoder.block.1.layer.1.EncDecAttention.prefix_tuning.prefix_gates.a."
    theirs |= {gate + "weight": rand(1, WIDTH), gate + "bias": rand(1)}
    found = one(write(tmp_path / "a", meta(config, model_type="t5"), theirs), Facts(kv=kv))
    assert set(found.sites) == kv.keys()
    assert "adapter/decoder.layer.1/cross.kv/gate.weight" in found.tensors
    first = theirs["prefix_tuning.prefix_tunings.a.self_prefix.control_trans"].view(LENGTH, 4, HEADS, EACH)
    assert torch.equal(found.tensors["adapter/decoder.layer.1/attn.kv/values"], first[:, 3])


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    flat = CONFIG | {"flat": True}
    good = {ROOT + "control_trans": rand(LENGTH * 2 * LAYERS * HEADS * EACH)}
    with pytest.raises(PackageError, match="give the base"):
        one(write(tmp_path / "a", meta(flat), with_copies(good)), Facts())
    with pytest.raises(PackageError, match="give the base"):
        one(write(tmp_path / "b", meta(flat), good), Facts())
    with pytest.raises(PackageError, match="numbers"):
        one(write(tmp_path / "c", meta(flat | {"prefix_length": 4}), with_copies(good)))
    changed = with_copies(good)
    changed[next(key for key in changed if ".pool." in key)] = good[ROOT + "control_trans"] + 1
    with pytest.raises(PackageError, match="differs from it"):
        one(write(tmp_path / "d", meta(flat), changed))
    only_copies = {key: value for key, value in with_copies(good).items() if ".pool." in key}
    with pytest.raises(PackageError, match="does not hold itself"):
        one(write(tmp_path / "e", meta(flat), only_copies))
    half = network(LAYERS)
    half.pop(ROOT + "wte.weight")
    with pytest.raises(PackageError, match=r"wte\.weight missing"):
        one(write(tmp_path / "f", meta(CONFIG), with_copies(half)))
    with pytest.raises(PackageError, match="elsewhere_prefix"):
        one(write(tmp_path / "g", meta(flat), {ROOT.replace("self", "elsewhere") + "control_trans": rand(4)}))
