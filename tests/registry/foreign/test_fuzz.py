"""Mutated files of others end in an error of ours or in an import that accounts for every tensor: never in between."""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from graftwork.errors import GraftworkError
from graftwork.registry.foreign.adapterhub import read_adapterhub, read_fusion
from graftwork.registry.foreign.imported import Asserted, Facts, Imported, to_package
from graftwork.registry.foreign.peft import read_peft
from tests.registry.foreign.hub_files import SEQ_BN, WIDTH, bert_bottleneck, meta, rand, write
from tests.registry.foreign.test_adapterhub import fusion_tensors
from tests.registry.foreign.test_peft import QUERY, facts, pair
from tests.registry.foreign.test_peft import write as write_peft
from tests.registry.foreign.test_prefix import ROOT, with_copies
from tests.registry.foreign.test_reft import REFT, units

LORA = {"architecture": "lora", "r": 2, "alpha": 2, "attn_matrices": ["q"]}
PREFIX = {"architecture": "prefix_tuning", "prefix_length": 3, "flat": True}
HEAD = {"head_type": "classification", "num_labels": 2, "layers": 1, "label2id": {"a": 0, "b": 1}}
KV = Facts(kv={f"layer.{n}/attn.kv": (2, 4) for n in range(3)})
SELF = "encoder.layer.0.attention.self.query.loras.a."
FILES: list[tuple[dict[str, Any], dict[str, torch.Tensor]]] = [
    (meta(SEQ_BN | {"invertible_adapter": None}, type="text_task", version="absent"), bert_bottleneck()),
    (meta(LORA), {f"{SELF}lora_A": rand(2, WIDTH), f"{SELF}lora_B": rand(WIDTH, 2)}),
    (meta(LORA | {"composition_mode": "scale", "r": 1}), {f"{SELF}lora_B": rand(WIDTH, 1)}),
    (meta(PREFIX), with_copies({ROOT + "control_trans": rand(3 * 2 * 3 * 8)})),
    (meta(REFT | {"orthogonality": True}), units("orthogonal")),
    (meta({"architecture": "union", "configs": [SEQ_BN, LORA]}), bert_bottleneck() | {f"{SELF}lora_A": rand(2, 8)}),
]
ODD = st.sampled_from([None, True, -1, 0, 2.5, 10**30, "", "x", "a.b", [], ["q", 3], {}, {"1": "x"}, [[[]]]])


def accounted(found: list[Imported], given: set[str]) -> None:
    """Every tensor of the file has a fate, and what came out can be packed or is refused aloud."""
    assert {fate.source for imported in found for fate in imported.fates} == given
    for imported in found:
        to_package(imported, members=dict.fromkeys(imported.members, "1" * 64)).manifest.model_dump_json()


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every path into nested JSON."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, child in inner for place in places(child, (*path, key)))][0 if path else 1 :]


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = changed(value[path[0]], path[1:], new)
    return copy


@given(st.data())
def test_a_configuration_with_one_odd_value(data: st.DataObject) -> None:
    written, tensors = data.draw(st.sampled_from(FILES))
    path = data.draw(st.sampled_from(places(written)))
    with tempfile.TemporaryDirectory() as name:
        folder = write(Path(name) / "a", changed(written, path, data.draw(ODD)), tensors)
        write(folder, changed(meta(HEAD), *head_change(data)), {"heads.a.1.weight": rand(2, 8)}, kind="head")
        try:
            found = read_adapterhub(folder, facts=KV)
            accounted(found, {*tensors, "heads.a.1.weight"})
        except GraftworkError:
            return


def head_change(data: st.DataObject) -> tuple[tuple[Any, ...], Any]:
    path = data.draw(st.sampled_from(places(meta(HEAD))))
    return path, data.draw(ODD)


@given(st.data())
def test_tensors_renamed_dropped_or_reshaped(data: st.DataObject) -> None:
    written, tensors = data.draw(st.sampled_from(FILES))
    key = data.draw(st.sampled_from(sorted(tensors)))
    mutated = dict(tensors)
    tensor = mutated.pop(key)
    how = data.draw(st.sampled_from(["drop", "rename", "step", "flat", "cut", "more"]))
    steps = key.split(".")
    steps[data.draw(st.integers(0, len(steps) - 1))] = data.draw(
        st.sampled_from(["", "7", "adapters", "a", "b", "output"])
    )
    new: dict[str, dict[str, torch.Tensor]] = {
        "drop": {},
        "rename": {f"{key}x": tensor},
        "step": {".".join(steps): tensor},
        "flat": {key: tensor.reshape(-1)},
        "cut": {key: tensor[:1]},
        "more": {key: tensor, f"x.{key}": tensor},
    }
    mutated |= new[how]
    with tempfile.TemporaryDirectory() as name:
        try:
            accounted(read_adapterhub(write(Path(name) / "a", written, mutated), facts=KV), set(mutated))
        except GraftworkError:
            return


@given(st.data())
def test_bytes_flipped_or_cut(data: st.DataObject) -> None:
    written, tensors = data.draw(st.sampled_from(FILES))
    safe = data.draw(st.booleans())
    with tempfile.TemporaryDirectory() as name:
        folder = write(
            Path(name) / "a", written, {key: value.clone().contiguous() for key, value in tensors.items()}, safe=safe
        )
        file = data.draw(st.sampled_from(sorted(folder.iterdir())))
        raw = bytearray(file.read_bytes())
        at = data.draw(st.integers(0, len(raw) - 1))
        if data.draw(st.booleans()):
            raw[at] ^= data.draw(st.integers(1, 255))
        else:
            raw = raw[:at]
        file.write_bytes(raw)
        try:
            found = read_adapterhub(folder, facts=KV)
            assert all(to_package(imported).tensors for imported in found)
        except GraftworkError:
            return


@given(st.data())
def test_fusions_and_peft_with_one_odd_value(data: st.DataObject) -> None:
    fusion = meta({"query": True, "key": True, "value": True}, "a,b", adapter_names=["a", "b"])
    with tempfile.TemporaryDirectory() as name:
        try:
            path = data.draw(st.sampled_from(places(fusion)))
            odd = changed(fusion, path, data.draw(ODD))
            accounted(
                [read_fusion(write(Path(name) / "f", odd, fusion_tensors("a,b"), kind="fusion"))],
                set(fusion_tensors("a,b")),
            )
        except GraftworkError:
            pass
        plain = {"rank_pattern": {"x": 1}, "alpha_pattern": {"y": 2}, "use_rslora": False, "use_dora": False}
        folder = write_peft(Path(name) / "p", plain, pair(QUERY.format(0)))
        config = json.loads((folder / "adapter_config.json").read_text())
        config = changed(config, data.draw(st.sampled_from(places(config))), data.draw(ODD))
        (folder / "adapter_config.json").write_text(json.dumps(config))
        try:
            accounted([read_peft(folder, Asserted("bert", WIDTH), facts())], set(pair(QUERY.format(0))))
        except GraftworkError:
            return
