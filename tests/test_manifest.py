"""manifest.py: what is part of the identity, what is refused, and that bytes come back as they were."""

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from graftwork.errors import PackageError
from graftwork.manifest import (
    IDENTITY,
    SCHEMA_VERSION,
    BaseRef,
    Contents,
    FileEntry,
    HeadSpec,
    Manifest,
    TensorEntry,
    dump,
    identity,
    parse,
)
from graftwork.strict_json import canonical_json, load_json
from tests.registry.samples import BASE, JSON, fusion_manifest, task_manifest

INFORMATIVE = {"name", "description", "scores", "data", "training", "licence", "created_with"}
TENSORS = {
    "adapter/layer.0/ffn/down.weight": TensorEntry(dtype="float32", shape=(2, 8), sha256="0" * 64),
    "head/out.weight": TensorEntry(dtype="bfloat16", shape=(), sha256="1" * 64),
}


def sealed(manifest: Manifest) -> Contents:
    weights = FileEntry(bytes=100, sha256="3" * 64)
    return Contents(digest=identity(manifest, TENSORS), tensors=TENSORS, weights=weights)


def edited(change: Callable[[dict[str, Any]], object]) -> bytes:
    """The JSON of a good package after one edit."""
    whole = json.loads(dump(task_manifest(), sealed(task_manifest())))
    change(whole)
    return json.dumps(whole).encode()


def refusal(change: Callable[[dict[str, Any]], object]) -> str:
    with pytest.raises(PackageError) as caught:
        parse(edited(change), "here/graft.json")
    return str(caught.value)


@pytest.mark.parametrize("manifest", [task_manifest(), fusion_manifest()])
def test_what_is_dumped_is_parsed(manifest: Manifest) -> None:
    text = dump(manifest, sealed(manifest))
    assert parse(text, "x") == (manifest, sealed(manifest))
    assert list(json.loads(text)) == sorted(json.loads(text))
    assert text.endswith(b"}\n")


def test_every_field_is_either_identity_or_informative() -> None:
    bearing = {path.split(".")[0] for path in IDENTITY}
    assert bearing | INFORMATIVE == set(Manifest.model_fields)
    assert not bearing & INFORMATIVE
    of_base = {path.split(".")[1] for path in IDENTITY if path.startswith("base.")}
    assert of_base == set(BaseRef.model_fields) - {"name"}


CHANGED = {
    "role": "language",
    "method": {"kind": "bottleneck", "reduction_factor": 5},
    "sites": ("layer.0/ffn", "layer.2/ffn"),
    "base": BASE.model_copy(update={"fingerprint": "0" * 64}),
    "vocabulary": None,
    "head": None,
    "task": None,
    "composition": "Stack(hi, mood)",
    "members": fusion_manifest().members,
    "semantics": "adapters-1",
    "fusion": fusion_manifest().fusion,
    "schema_version": 2,
}


@pytest.mark.parametrize("field", sorted({path.split(".")[0] for path in IDENTITY}))
def test_behaviour_changes_the_digest(field: str) -> None:
    changed = task_manifest().model_copy(update={field: CHANGED[field]})
    assert identity(changed, TENSORS) != identity(task_manifest(), TENSORS)


@pytest.mark.parametrize("field", sorted(INFORMATIVE))
def test_description_does_not_change_the_digest(field: str) -> None:
    other: object = {"other": "1"} if isinstance(getattr(task_manifest(), field), dict) else "other"
    changed = task_manifest().model_copy(update={field: other})
    assert getattr(changed, field) != getattr(task_manifest(), field)
    assert identity(changed, TENSORS) == identity(task_manifest(), TENSORS)


def test_the_name_of_the_base_does_not_change_the_digest() -> None:
    changed = task_manifest().model_copy(update={"base": BASE.model_copy(update={"name": "elsewhere"})})
    assert identity(changed, TENSORS) == identity(task_manifest(), TENSORS)


@pytest.mark.parametrize("change", [{"dtype": "float16"}, {"shape": (8, 2)}, {"sha256": "9" * 64}])
def test_a_tensor_changes_the_digest(change: dict[str, object]) -> None:
    name = "head/out.weight"
    changed = TENSORS | {name: TENSORS[name].model_copy(update=change)}
    assert identity(task_manifest(), changed) != identity(task_manifest(), TENSORS)
    renamed = {name + "x": entry for name, entry in TENSORS.items()}
    assert identity(task_manifest(), renamed) != identity(task_manifest(), TENSORS)


def test_the_digest_does_not_move() -> None:
    """A stored package must verify for ever: this number changes only with the schema version."""
    assert identity(task_manifest(), TENSORS) == "9b332b2a49ad56bbc6410b16c1e701bff3cffac685c79182236c735e41be0bbb"


@given(st.dictionaries(st.text("ab", max_size=3), JSON, max_size=4), st.randoms())
def test_order_of_keys_does_not_change_the_digest(config: dict[str, Any], order: Any) -> None:
    config |= {"kind": "x"}
    keys = list(config)
    order.shuffle(keys)
    first = task_manifest().model_copy(update={"method": config})
    second = task_manifest().model_copy(update={"method": {key: config[key] for key in keys}})
    backwards = dict(reversed(TENSORS.items()))
    assert identity(first, TENSORS) == identity(second, backwards)


@given(JSON)
def test_canonical_json_is_json_with_one_spelling(value: Any) -> None:
    text = canonical_json(value)
    assert json.loads(text) == value
    assert canonical_json(json.loads(text)) == text


def test_tuples_are_lists() -> None:
    made = task_manifest().model_copy()
    again = Manifest(**(made.model_dump() | {"method": {"kind": "x", "leave_out": (1, (2, 3))}}))
    assert again.method == {"kind": "x", "leave_out": [1, [2, 3]]}


def test_a_newer_schema_is_refused_first() -> None:
    message = refusal(lambda whole: whole.update(schema_version=SCHEMA_VERSION + 1, unheard_of=1))
    assert message == (
        f"here/graft.json: schema_version {SCHEMA_VERSION + 1} is newer than this graftwork reads "
        f"(up to {SCHEMA_VERSION}): upgrade graftwork to use this package"
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w.update(licens="x"), ["here/graft.json", "unknown key 'licens'", "did you mean 'licence'?"]),
        (lambda w: w["base"].update(colour="x"), ["unknown key 'base.colour'"]),
        (lambda w: w.pop("role"), ["key 'role' is missing"]),
        (lambda w: w.pop("digest"), ["key 'digest' is missing"]),
        (lambda w: w["base"].pop("fingerprint"), ["key 'base.fingerprint' is missing"]),
        (lambda w: w.update(role="tusk"), ["role", "'task', 'language', 'fusion' or 'head'", "'tusk'"]),
        (lambda w: w["base"].update(fingerprint="XYZ"), ["base.fingerprint", "'XYZ'"]),
        (lambda w: w["base"].update(hidden_size="8"), ["base.hidden_size", "'8'"]),
        (lambda w: w["base"].update(asserted=1), ["base.asserted", "found 1"]),
        (lambda w: w["head"].update(num_outputs=3), ["head", "3 outputs but 2 labels"]),
        (lambda w: w.update(schema_version=0), ["schema_version", "found 0"]),
        (lambda w: w.update(sites=["layer 0"]), ["sites.0", "written like layer.3/ffn", "'layer 0'"]),
        (lambda w: w.update(sites=["a", "a"]), ["sites are listed twice: a"]),
        (lambda w: w.update(method=None), ["role 'task' needs method"]),
        (lambda w: w.update(method={"m": 1}), ["method needs a 'kind'"]),
        (lambda w: w.update(role="head", method=None), ["role 'head' cannot have sites"]),
        (lambda w: w.update(role="fusion"), ["role 'fusion' needs fusion"]),
        (lambda w: w["tensors"]["head/out.weight"].update(dtype="int8"), ["head/out.weight.dtype", "'int8'"]),
        (lambda w: w["weights"].update(bytes=-1), ["weights.bytes", "found -1"]),
        (lambda w: w.update(semantics="other"), ["semantics", "'other'"]),
        (lambda w: w.update(composition="\ud800"), ["here/graft.json"]),
        (lambda w: w.update(composition="x" * 999, licence=5), ["licence", "found 5"]),
    ],
)
def test_a_wrong_key_is_named(change: Callable[[dict[str, Any]], object], words: list[str]) -> None:
    message = refusal(change)
    assert [word for word in words if word not in message] == [], message


def test_all_problems_come_at_once() -> None:
    message = refusal(lambda whole: whole.update(role="tusk", colour=1, digest="short"))
    assert len(message.splitlines()) == 3
    assert all(line.startswith("here/graft.json: ") for line in message.splitlines())


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not valid JSON"),
        (b"[1]", "expected a JSON object, found list"),
        (b'{"a": 1, "a": 2}', "key 'a' stands twice"),
        (b'{"a": NaN}', "NaN is not a number that JSON knows"),
        (b'{"a": "\xff"}', "not valid JSON: 'utf-8'"),
        (b"[" * 200_000, "not valid JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b'{"schema_version": true}', "key 'role' is missing"),
    ],
)
def test_what_is_not_an_object_of_json_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(PackageError) as caught:
        parse(data, "here/graft.json")
    assert "here/graft.json: " in str(caught.value)
    assert words in str(caught.value)


def test_an_infinite_number_is_refused() -> None:
    text = edited(lambda whole: whole["scores"].update(loss=12345)).replace(b"12345", b"1e999")
    with pytest.raises(PackageError, match="Out of range float values are not JSON compliant"):
        parse(text, "x")
    with pytest.raises(ValidationError, match="Out of range float"):
        Manifest(**(task_manifest().model_dump() | {"scores": {"loss": float("nan")}}))
    with pytest.raises(ValidationError, match="finite number"):
        HeadSpec(kind="x", num_outputs=1, dropout=float("inf"))


def test_reading_is_quick_on_hostile_input() -> None:
    twice = b"{" + b",".join(b'"%d":0' % index for index in range(300_000)) + b',"0":0}'
    with pytest.raises(PackageError, match="key '0' stands twice"):
        load_json(twice, "x")


def test_parameters_are_counted_by_part() -> None:
    contents = sealed(task_manifest())
    assert (contents.parameters(), contents.parameters("adapter"), contents.parameters("head")) == (17, 16, 1)
    assert contents.parameters("fusion") == 0


def test_manifests_know_no_torch() -> None:
    code = "import sys, graftwork.manifest; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
