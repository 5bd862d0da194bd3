"""Between parts and packages: what is written down, and what is refused with nothing half-done."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from graftwork.compose.claims import check_part_name
from graftwork.compose.tree import Fuse
from graftwork.core.bottleneck import BottleneckConfig
from graftwork.core.fusion import FusionConfig
from graftwork.errors import AdapterError, CompositionError, Conflict, PackageError
from graftwork.manifest import Member, TaskSpec
from graftwork.model import AdapterModel, AutoAdapterModel
from graftwork.packing import Provenance, install, pack
from graftwork.registry.package import Package
from tests import tiny
from tests.adapted import adapted, same, shaken, snapshot

Tensors = dict[str, torch.Tensor]


def packed(model: AdapterModel, name: str, with_head: bool = True) -> Package:
    return pack(model.parts, model.backbone, name, with_head, Provenance())


def installed(model: AdapterModel, package: Package, name: str = "new", fuse: Fuse | None = None) -> str:
    return install(model.parts, model.backbone, package, name, True, fuse)


def altered(package: Package, **fields: Any) -> Package:
    return Package(package.manifest.model_copy(update=fields), package.tensors)


def test_what_is_written_down() -> None:
    model = AdapterModel(tiny.model("t5"))
    model.add_adapter("a", "double_seq_bn[reduction_factor=8]")
    model.add_classification_head("a", id2label={0: "no", 1: "yes"})
    provenance = Provenance(
        role="language",
        task=TaskSpec(kind="classification", max_length=64, labels=("no", "yes")),
        vocabulary="0" * 64,
        composition="Stack(hi, a)",
        members=(Member(name="hi", digest="1" * 64),),
        scores={"accuracy": 0.5},
        data={"rows": 3},
        training={"epochs": 2},
        description="a test",
        licence="cc0-1.0",
    )
    package = pack(model.parts, model.backbone, "a", True, provenance)
    manifest = package.manifest
    assert manifest.sites == tuple(
        [f"encoder.layer.{n}/{kind}" for n in (0, 1) for kind in ("attn", "ffn")]
        + [f"decoder.layer.{n}/{kind}" for n in (0, 1) for kind in ("attn", "ffn")]
    )
    assert manifest.method is not None
    assert (manifest.method["kind"], manifest.method["reduction_factor"], manifest.method["mh_adapter"]) == (
        "bottleneck",
        8,
        True,
    )
    assert set(manifest.method) == {"kind", *(field.name for field in fields(BottleneckConfig))}  # every flag
    assert manifest.head is not None
    assert manifest.head.model_dump() == {
        "kind": "classification",
        "labels": ("no", "yes"),
        "num_outputs": 2,
        "layers": 2,
        "activation": "tanh",
        "dropout": 0.0,
        "pooling": "last",
    }
    assert manifest.base.fingerprint == model.backbone.fingerprint
    assert (manifest.base.model_type, manifest.base.hidden_size) == ("t5", 32)
    assert {key: getattr(manifest, key) for key in vars(provenance)} == vars(provenance)
    assert set(manifest.created_with) == {"graftwork", "torch", "transformers"}
    assert len(package.tensors) == 8 * 4 + 4
    assert package.tensors["adapter/decoder.layer.1/ffn/down.weight"].shape == (4, 32)
    assert package.tensors["head/layers.4.bias"].shape == (2,)


def test_a_fusion_lists_its_members_with_their_digests() -> None:
    model = adapted(heads=["a"])
    model.add_adapter_fusion(Fuse("a", "b", name="ab"), "static")
    package = packed(model, "ab")
    spec = package.manifest.fusion
    assert spec is not None
    assert spec.composition == "Fuse(a, b, name=ab)"
    assert spec.members == tuple(Member(name=n, digest=packed(model, n, with_head=False).digest) for n in "ab")
    assert FusionConfig(**spec.config) == model.parts.fusion_records["ab"].config  # type: ignore[arg-type]
    assert {key.split("/")[0] for key in package.tensors} == {"fusion"}


def test_a_member_that_came_from_a_package_is_listed_by_it() -> None:
    model = adapted(heads=["a"])
    other = AdapterModel(tiny.model("bert"))
    for name in "ab":
        installed(other, packed(model, name), name)
    other.add_adapter_fusion("a,b")
    spec = packed(other, "a,b").manifest.fusion
    assert spec is not None
    assert spec.members == tuple(Member(name=n, digest=packed(model, n).digest) for n in "ab")
    other.train_adapter("a")  # its weights will move
    spec = packed(other, "a,b").manifest.fusion
    assert spec is not None
    assert spec.members[0].digest == packed(other, "a", with_head=False).digest != packed(model, "a").digest


def test_members_may_be_called_otherwise_here() -> None:
    model = adapted(heads=["a"])
    model.add_adapter_fusion(Fuse("a", "b", name="ab"))
    shaken(model.parts.fusions, seed=5)
    other = AdapterModel(tiny.model("bert"))
    for name, local in zip("ab", ("a@1", "b@7"), strict=True):
        installed(other, packed(model, name), local)
    fuse = Fuse("a@1", "b@7", name="ab@2")
    assert installed(other, packed(model, "ab"), "anything", fuse) == "ab@2"
    given = tiny.inputs("bert")
    with torch.no_grad():
        theirs = model(**given, adapters=Fuse("a", "b", name="ab"), head="none")[0]
        assert torch.equal(other(**given, adapters=fuse, head="none")[0], theirs)
    with pytest.raises(
        Conflict, match=r"fusion 'x' was trained over 'a' with digest \w{12}, but 'b@7' here is another"
    ):
        installed(other, packed(model, "ab"), "x", Fuse("b@7", "a@1", name="x"))
    with pytest.raises(Conflict, match=r"fusion 'x' has 2 members, Fuse\(a@1, name=x\) names 1"):
        installed(other, packed(model, "ab"), "x", Fuse("a@1", name="x"))


def _without(key: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {k: t for k, t in tensors.items() if k != key}


FIRST = "adapter/layer.0/ffn/down.weight"
DAMAGE: dict[str, tuple[Callable[[Tensors], Mapping[str, torch.Tensor]], str]] = {
    "missing": (_without(FIRST), f"tensor '{FIRST}' is missing"),
    "missing from the head": (_without("head/layers.1.bias"), "tensor 'head/layers.1.bias' is missing"),
    "extra": (
        lambda t: {**t, "adapter/layer.0/ffn/gate.bias": torch.ones(1)},
        "'adapter/layer.0/ffn/gate.bias' belongs",
    ),
    "extra in the head": (lambda t: {**t, "head/layers.9.bias": torch.ones(1)}, "'head/layers.9.bias' belongs nowhere"),
    "shape": (lambda t: {**t, FIRST: t[FIRST].T}, r"has shape \(32, 8\), expected \(8, 32\)"),
    "broadcastable shape": (lambda t: {**t, FIRST: t[FIRST][:1]}, r"has shape \(1, 32\), expected \(8, 32\)"),
    "several": (lambda t: {k: v[:1] for k, v in t.items()}, "; tensor 'adapter/layer.0/ffn/down.bias' has shape"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_tensors_that_do_not_fit_are_named_and_nothing_changes(damage: str) -> None:
    alter, message = DAMAGE[damage]
    model = adapted(heads=["a"])
    model.set_active_adapters("b")
    package = packed(model, "a")
    before = snapshot(model)
    with pytest.raises(PackageError, match=rf"package 'new': .*{message}"):
        installed(model, Package(package.manifest, dict(alter(package.tensors))))
    assert same(before, snapshot(model))
    assert (list(model.parts.adapter_configs), list(model.parts.head_configs)) == (["a", "b"], ["a"])
    assert (model.active_adapters, model.parts.origins) == ("b", {})
    assert installed(model, package) == "new"


def test_manifests_that_cannot_be_built_are_refused() -> None:
    model = adapted(heads=["a"])
    model.add_adapter_fusion("a,b")
    adapter, fusion = packed(model, "a"), packed(model, "a,b")
    assert adapter.manifest.method is not None
    assert adapter.manifest.head is not None
    assert fusion.manifest.fusion is not None
    method, head, spec = adapter.manifest.method, adapter.manifest.head, fusion.manifest.fusion
    spread = {"config": {**spec.config, "temperature": 3}}
    cannot = "package 'new' asks for what this version cannot build: "
    wrong: list[tuple[Package, type[Exception], str]] = [
        (altered(adapter, sites=adapter.manifest.sites[1:]), PackageError, r"only on the base: \['layer.0/ffn'\]"),
        (altered(adapter, sites=(*adapter.manifest.sites, "layer.9/ffn")), PackageError, r"package: \['layer.9/ffn'\]"),
        (
            altered(adapter, method={**method, "kind": "lorax"}),
            PackageError,
            f"{cannot}adapter method 'lorax' is unknown",
        ),
        (altered(adapter, method={**method, "phm": 1}), PackageError, f"{cannot}bottleneck: unknown flag 'phm'"),
        (altered(adapter, method={**method, "scaling": "x"}), PackageError, f"{cannot}bottleneck adapter: scaling 'x'"),
        (
            altered(adapter, head=head.model_copy(update={"kind": "choice"})),
            PackageError,
            f"{cannot}head: kind 'choice'",
        ),
        (altered(fusion, fusion=spec.model_copy(update=spread)), PackageError, f"{cannot}.*'temperature'"),
        (
            altered(fusion, fusion=spec.model_copy(update={"composition": "Stack(a, b)"})),
            PackageError,
            r"package 'a,b': Stack\(a, b\) is not a Fuse",
        ),
        (
            altered(fusion, fusion=spec.model_copy(update={"composition": "Fuse(a"})),
            PackageError,
            r"package 'a,b': cannot read 'Fuse\(a'",
        ),
    ]
    before = snapshot(model)
    for package, error, message in wrong:
        with pytest.raises(error, match=message):
            installed(model, package)
        assert same(before, snapshot(model))
    assert (list(model.parts.adapter_configs), list(model.parts.head_configs)) == (["a", "b"], ["a"])


def test_a_base_that_is_only_asserted_is_checked_by_its_shapes() -> None:
    model = adapted(heads=["a"])
    package = packed(model, "a")
    base = package.manifest.base
    claimed = altered(package, base=base.model_copy(update={"fingerprint": "0" * 64, "asserted": True}))
    assert installed(model, claimed) == "new"
    wide = base.model_copy(update={"fingerprint": "0" * 64, "asserted": True, "hidden_size": 64})
    with pytest.raises(Conflict, match="trained on another base: bert"):
        installed(model, altered(package, base=wide), "newer")
    with pytest.raises(Conflict, match="000000000000"):
        installed(model, altered(package, base=base.model_copy(update={"fingerprint": "0" * 64})), "newer")


def test_tensors_are_cast_to_the_type_of_the_base() -> None:
    package = packed(adapted(heads=["a"]), "a")
    halved = {key: tensor.to(torch.bfloat16) for key, tensor in package.tensors.items()}
    model = AdapterModel(tiny.model("bert"))
    installed(model, Package(package.manifest, halved))
    assert {parameter.dtype for parameter in model.parts.parameters()} == {torch.float32}
    assert all(torch.equal(a.float(), b) for a, b in zip(halved.values(), model.parts.parameters(), strict=True))


def test_what_is_packed_is_a_copy() -> None:
    model = adapted()
    package = packed(model, "a")
    before = {key: tensor.clone() for key, tensor in package.tensors.items()}
    shaken(model.parts, seed=4)
    assert same(before, package.tensors)
    assert not any(tensor.requires_grad for tensor in package.tensors.values())


@pytest.mark.parametrize(
    ("name", "table", "fine"),
    [
        ("a", "adapters", True),
        ("a,b", "adapters", False),
        ("a,b", "fusions", True),
        ("a,b", "heads", True),
        ("a,", "heads", False),
        (",", "fusions", False),
        (None, "heads", False),
    ],
)
def test_names_of_parts(name: Any, table: str, fine: bool) -> None:
    if fine:
        assert check_part_name(name, table) == name
    else:
        with pytest.raises(CompositionError, match="is not a name"):
            check_part_name(name, table)


def test_an_unknown_name_lists_what_is_there() -> None:
    with pytest.raises(AdapterError, match="nothing is called 'c'; there are: a, b"):
        packed(adapted(heads=["a"]), "c")


def test_a_package_names_its_base_without_a_path_of_this_machine(minilm_folder: Path, tmp_path: Path) -> None:
    tiny.model("bert").save_pretrained(tmp_path / "my-bert")
    for given, named in ((str(minilm_folder), "minilm"), (str(tmp_path / "my-bert"), "my-bert")):
        model = AutoAdapterModel.from_pretrained(given)
        model.add_adapter("a")
        assert model.package("a").manifest.base.name == named
