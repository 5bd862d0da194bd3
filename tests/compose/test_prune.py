"""Pruned fusions: attention renormalised over the members that stay, measured by what was attended to."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from graftwork.compose.fold import multiplications
from graftwork.compose.parts import Parts
from graftwork.compose.prune import FusionAttention, fusion_attention, keep_members
from graftwork.compose.reference import bind
from graftwork.compose.tree import BatchSplit, Fuse, Stack
from graftwork.core.fusion import FUSIONS, Fusion
from graftwork.core.site import NO_DELTA, Reading
from graftwork.errors import AdapterError, PackageError
from graftwork.model import AdapterModel
from graftwork.registry.package import Package
from tests import tiny
from tests.adapted import shaken
from tests.rig import relative

MEMBERS = ("a", "b", "c")
FUSED = Fuse(*MEMBERS, name="f")
SITE = "layer.1/ffn"
GIVEN = {**tiny.inputs("bert", rows=4), "attention_mask": torch.ones(4, 7, dtype=torch.long)}
GIVEN["attention_mask"][1:3, 4:] = 0


def made(fusion: str = "dynamic", semantics: str | None = None) -> AdapterModel:
    model = AdapterModel(tiny.model("bert"))
    for name in MEMBERS:
        model.add_adapter(name, "seq_bn[reduction_factor=4]")
    model.add_adapter("hi", "seq_bn[reduction_factor=8]")
    if semantics is None:
        model.add_adapter_fusion(FUSED, fusion)
    else:
        model.parts.add_fusion(FUSED, FUSIONS[fusion], model.backbone, semantics)
    model.add_classification_head("f", num_labels=2)
    shaken(model.parts, seed=3)
    return model.eval()


def ran(model: AdapterModel, setup: Any) -> Tensor:
    with torch.no_grad():
        last: Tensor = model(**GIVEN, adapters=setup, head="none")[0]
    return last


def shares(model: AdapterModel, sites: dict[str, tuple[float, ...]]) -> FusionAttention:
    """As if that had been measured, and every site without an entry had attended to all alike."""
    every = dict.fromkeys(model.parts.modules_of("fusions", "f"), (1 / 3, 1 / 3, 1 / 3))
    return FusionAttention("f", MEMBERS, every | sites, {}, 1)


def index_of(model: AdapterModel, site: str) -> int:
    return next(one.index for one in model.backbone.sites if one.name == site)


# -- what a pruned fusion computes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("config", ["dynamic", "static"])
@pytest.mark.parametrize("kept", [(0, 1), (0, 2), (1, 2), (1,)])
def test_it_is_the_attention_renormalised_over_what_is_kept(config: str, kept: tuple[int, ...]) -> None:
    model = made(config)
    keep_members(model.parts, "f", {SITE: kept})
    index = index_of(model, SITE)
    generator = torch.Generator().manual_seed(4)
    norm = torch.nn.LayerNorm(32)
    reading = Reading(*(torch.randn(2, 5, 32, generator=generator) for _ in range(2)), norm=norm)
    node = bind(FUSED, index, model.parts)
    assert node is not None
    with torch.no_grad():
        found = node.change(reading, NO_DELTA)
        said = [model.parts.adapter(name, index).change(reading, NO_DELTA).double() for name in MEMBERS]
        layer = model.parts.fusion("f", index)
        x = model.parts.adapter("c", index).read(reading, NO_DELTA).double()  # of the last member, kept or not
        assert layer is not None
        assert layer.query is not None
        assert layer.key is not None
        query = x @ layer.query.weight.double().T + layer.query.bias.double()
        scores = torch.stack(
            [(query * (one @ layer.key.weight.double().T + layer.key.bias.double())).sum(-1) for one in said], dim=-1
        )
        whole = scores.softmax(-1)[..., list(kept)]
        attended = whole / whole.sum(-1, keepdim=True)
        expected = sum(attended[..., [at]] * said[member] for at, member in enumerate(kept))
        expected = expected if layer.value is None else expected @ layer.value.weight.double().T
    assert relative(found.double(), expected) < 1e-6


@pytest.mark.parametrize("execution", ["reference", "folded"])
@pytest.mark.parametrize("semantics", [None, "adapters-1"])
def test_members_that_are_not_kept_are_not_computed(execution: str, semantics: str | None) -> None:
    model = made(semantics=semantics)
    attention = shares(model, {SITE: (0.1, 0.5, 0.4), "layer.0/ffn": (0.5, 0.3, 0.2)})
    assert model.prune_fusion(attention, 2, name="few") == "few"
    few = Fuse(*MEMBERS, name="few")
    model.execution = execution
    expected = ran(model, few)
    assert relative(expected, ran(model, FUSED)) > 1e-3
    for name, site in (("a", SITE), ("c", "layer.0/ffn")):
        for weight in model.parts.adapter(name, index_of(model, site)).parameters():
            torch.nn.init.constant_(weight, float("nan"))
    assert torch.equal(ran(model, few), expected)
    assert ran(model, FUSED).isnan().any()


def test_pruned_fusions_fold_to_what_the_reference_says_and_cost_less() -> None:
    model = made()
    model.prune_fusion(shares(model, {SITE: (0.2, 0.5, 0.3), "layer.0/ffn": (0.2, 0.3, 0.5)}), 1, name="one")
    model.prune_fusion(shares(model, {SITE: (0.2, 0.5, 0.3)}), 2, name="two")
    for name in ("one", "two"):
        setup = Stack("hi", Fuse(*MEMBERS, name=name))
        model.execution = "reference"
        expected = ran(model, setup)
        model.execution = "folded"
        assert relative(ran(model, setup), expected) < 1e-5
    index = index_of(model, SITE)
    costs = [multiplications(Fuse(*MEMBERS, name=name), index, model.parts) for name in ("one", "two", "f")]
    assert costs == [3 * 32 * 32 + members * (2 * 32 * 8 + 2 * 32) for members in (1, 2, 3)]


def test_all_members_kept_are_the_whole_fusion() -> None:
    model = made()
    name = model.prune_fusion(shares(model, {}), 3)
    assert name == "f-3"
    assert torch.equal(ran(model, Fuse(*MEMBERS, name=name)), ran(model, FUSED))


def test_a_pruned_fusion_has_weights_and_a_head_of_its_own() -> None:
    model = made()
    name = model.prune_fusion(shares(model, {SITE: (0.5, 0.3, 0.2)}))
    assert name == "f-2"
    few = Fuse(*MEMBERS, name=name)
    with torch.no_grad():
        first, second = (model(**GIVEN, adapters=one).logits for one in (FUSED, few))
        hidden = ran(model, few)
        torch.testing.assert_close(second, model.parts.head("f")(hidden, GIVEN["attention_mask"]))
    assert not torch.equal(first, second)
    assert not any(weight.requires_grad for weight in model.parts.fusions["=f-2"].parameters())
    before = ran(model, FUSED)
    model.train_adapter_fusion(few)
    shaken(model.parts.fusions["=f-2"], seed=8)
    model.eval()
    assert torch.equal(ran(model, FUSED), before)
    with pytest.raises(AdapterError, match="'f-2'"):
        model.prune_fusion(shares(model, {}))


# -- what is measured ------------------------------------------------------------------------------------------------


def by_hand(model: AdapterModel, setup: Any) -> dict[str, Tensor]:
    """Attention (B, T, K) at every site in float64, from what enters the fusion layers of an ordinary call."""
    found: dict[str, Tensor] = {}
    handles = []
    for site, layer in model.parts.modules_of("fusions", "f").items():

        def see(module: Any, args: tuple[Any, ...], output: Tensor, site: str = site) -> None:
            query = args[0].double() @ module.query.weight.double().T + module.query.bias.double()
            keys = [one.double() @ module.key.weight.double().T + module.key.bias.double() for one in args[1]]
            found[site] = torch.stack([(query * key).sum(-1) for key in keys], dim=-1).softmax(-1)

        handles.append(layer.register_forward_hook(see))
    model.execution = "reference"
    ran(model, setup)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("setup", [None, Stack("hi", FUSED)])
def test_the_mean_is_over_real_tokens_and_over_the_rows_of_each_label(setup: Any) -> None:
    model = made()
    expected = by_hand(model, setup or FUSED)
    labels = torch.tensor([1, 0, 1, 1])
    whole = {**GIVEN, "labels": labels}
    parted = [{key: value[:1] for key, value in whole.items()}, {key: value[1:] for key, value in whole.items()}]
    found = model.fusion_attention("f", [whole], adapters=setup)
    assert (found.fusion, found.members, found.tokens) == ("f", MEMBERS, 22)
    assert list(found.labels) == [0, 1]
    real = GIVEN["attention_mask"].bool()
    for site, attended in expected.items():
        torch.testing.assert_close(torch.tensor(found.sites[site]).double(), attended[real].mean(0), rtol=0, atol=1e-6)
        for label, sites in found.labels.items():
            rows = labels == label
            mean = attended[rows][real[rows]].mean(0)
            torch.testing.assert_close(torch.tensor(sites[site]).double(), mean, rtol=0, atol=1e-6)
        spread = -(attended * attended.log()).sum(-1)[real].mean() / math.log(3)
        assert found.entropy[site] == pytest.approx(float(spread), abs=1e-6)
    again = model.fusion_attention("f", iter(parted), adapters=setup)
    for site, own in found.sites.items():
        torch.testing.assert_close(again.sites[site], own, rtol=0, atol=1e-7)
    assert again.tokens == 22
    assert model.fusion_attention("f", [GIVEN], adapters=setup).labels == {}


def test_labels_of_tokens_have_means_of_their_own() -> None:
    model = made()
    expected, real = by_hand(model, FUSED), GIVEN["attention_mask"].bool()
    labels = torch.randint(0, 2, real.shape, generator=torch.Generator().manual_seed(6))
    labels[:, 0] = labels[~real] = -100
    found = model.fusion_attention("f", [{**GIVEN, "labels": labels}])
    assert list(found.labels) == [0, 1]
    for label, sites in found.labels.items():
        mean = expected[SITE][(labels == label) & real].mean(0)
        torch.testing.assert_close(torch.tensor(sites[SITE]).double(), mean, rtol=0, atol=1e-6)
    told = found.told(["x", "y"])
    assert (told["members"], told["tokens"], list(told["labels"])) == (["a", "b", "c"], 22, ["x", "y"])
    assert told["labels"]["y"][SITE] == list(found.labels[1][SITE])


@pytest.mark.parametrize("family", ["t5", "bart", "gpt2", "bert"])
def test_it_is_measured_of_every_kind_of_base_from_its_texts_alone(family: str) -> None:
    model = AdapterModel(tiny.model(family))
    for name in "ab":
        model.add_adapter(name, "seq_bn[reduction_factor=4]")
    model.add_adapter_fusion(Fuse("a", "b", name="f"))
    shaken(model.parts, seed=3)
    ids = tiny.inputs(family, rows=2)["input_ids"]
    found = model.eval().fusion_attention("f", [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}])
    assert set(found.sites) == set(model.parts.modules_of("fusions", "f"))
    assert all(sum(own) == pytest.approx(1) for own in found.sites.values())


def test_shares_sum_to_one_also_in_bfloat16() -> None:
    model = made().to(torch.bfloat16)
    found = model.fusion_attention("f", [GIVEN])
    assert all(sum(own) == pytest.approx(1, abs=1e-9) for own in found.sites.values())


def test_the_most_attended_members_of_each_site_stay() -> None:
    model = made()
    attention = model.fusion_attention("f", [GIVEN])
    name = model.prune_fusion(attention, 2)
    kept = model.parts.fusion_records[name].kept
    assert kept.keys() == attention.sites.keys()
    for site, members in kept.items():
        left_out = ({0, 1, 2} - set(members)).pop()
        assert attention.sites[site][left_out] == min(attention.sites[site])
    assert len(set(kept.values())) > 1  # members differ from layer to layer
    equal = FusionAttention("f", MEMBERS, {SITE: (0.3, 0.3, 0.4)}, {}, 1)
    assert equal.most(2) == {SITE: (0, 2)}


def test_what_cannot_be_measured_or_pruned_is_refused() -> None:
    model = made()

    def refused(message: str, *args: Any, **options: Any) -> None:
        with pytest.raises(AdapterError, match=message):
            model.fusion_attention(*args, **options)

    refused("no fusion 'g'; the fusions are: f", "g", [GIVEN])
    refused("there was no batch", "f", [])
    refused("BertModel takes no decoder_input_ids", "f", [{**GIVEN, "decoder_input_ids": GIVEN["input_ids"]}])
    refused(r"Stack\(hi, a\) does not hold fusion 'f'", "f", [GIVEN], adapters=Stack("hi", "a"))
    apart = BatchSplit(FUSED, "a", batch_sizes=[2, 2])
    refused("sends rows or tokens apart", "f", [GIVEN], adapters=apart)
    attention = model.fusion_attention("f", [GIVEN])
    for keep in (0, 4):
        with pytest.raises(AdapterError, match=f"keep is {keep}; fusion 'f' has 3 members, so keep 1 to 3"):
            model.prune_fusion(attention, keep)
    model.prune_fusion(attention, 1)
    refused("is pruned: measure the whole one", "f-1", [GIVEN])
    model.delete_adapter_fusion("f")
    with pytest.raises(AdapterError, match="no fusion 'f' over a, b, c is here"):
        model.prune_fusion(attention, 1)
    training = made().train()
    with pytest.raises(AdapterError, match=r"call eval\(\) first"):
        training.fusion_attention("f", [GIVEN])


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ({"layer.9/ffn": (0,)}, "keeps members at 'layer.9/ffn', where it has no layer"),
        ({SITE: ()}, r"keeps the members \[\] at layer.1/ffn; they must be some of 0 to 2"),
        ({SITE: (1, 0)}, r"\[1, 0\]"),
        ({SITE: (1, 1)}, r"\[1, 1\]"),
        ({SITE: (0, 3)}, r"\[0, 3\]"),
        ({SITE: (-1, 0)}, r"\[-1, 0\]"),
    ],
)
def test_members_that_are_not_there_cannot_be_kept(kept: dict[str, tuple[int, ...]], message: str) -> None:
    model = made()
    with pytest.raises(AdapterError, match=message):
        keep_members(model.parts, "f", kept)
    assert model.parts.fusion_records["f"].kept == {}


# -- packages --------------------------------------------------------------------------------------------------------


def twin(model: AdapterModel) -> AdapterModel:
    other = AdapterModel(tiny.model("bert"))
    for name in MEMBERS:
        other.install(model.package(name))
    return other.eval()


def test_a_pruned_fusion_is_packaged_with_what_it_keeps(tmp_path: Any) -> None:
    model = made()
    name = model.prune_fusion(model.fusion_attention("f", [GIVEN]), 2)
    model.save_adapter(tmp_path / "few", name)
    model.save_adapter(tmp_path / "whole", "f")
    assert '"kept"' in (tmp_path / "few" / "graft.json").read_text()
    assert '"kept"' not in (tmp_path / "whole" / "graft.json").read_text()
    other = twin(model)
    other.load_adapter(tmp_path / "few", set_active=True)
    assert other.parts.fusion_records[name] == model.parts.fusion_records[name]
    assert torch.equal(ran(other, Fuse(*MEMBERS, name=name)), ran(model, Fuse(*MEMBERS, name=name)))
    assert other.package(name).digest == model.package(name).digest != model.package("f").digest


def test_a_package_that_keeps_what_is_not_there_adds_nothing() -> None:
    model = made()
    name = model.prune_fusion(model.fusion_attention("f", [GIVEN]), 2)
    package = model.package(name)
    assert package.manifest.fusion is not None
    other = twin(model)
    for kept in ({SITE: (0, 3)}, {SITE: ()}, {"layer.7/ffn": (0,)}):
        fusion = package.manifest.fusion.model_copy(update={"kept": kept})
        wrong = Package(package.manifest.model_copy(update={"fusion": fusion}), package.tensors)
        with pytest.raises(PackageError, match="keeps"):
            other.install(wrong)
        assert not other.parts.fusion_records
        assert name not in other.parts.head_configs


def test_the_modules_that_are_listened_to_answer_as_before() -> None:
    model = made()
    before = ran(model, FUSED)
    fusion_attention(model.parts, model.backbone, "f", [GIVEN])
    assert torch.equal(ran(model, FUSED), before)
    assert isinstance(model.parts, Parts)
    assert all(isinstance(layer, Fusion) for layer in model.parts.modules_of("fusions", "f").values())
