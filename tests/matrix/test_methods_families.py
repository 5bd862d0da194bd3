"""Every named method on every family: refused with the right reason, or neutral, effective, per row, trainable, kept.

For each pair, on a tiny random model: with what it writes set to zero the method is the base to the last bit; with
random weights the output changes; a package brings the same output back to the last bit. In a rotating third of the
pairs (all of them in the full profile) a batch of rows with this adapter, with none and with another one equals one row
at a time, and gradients reach every parameter of the adapter that a row is routed to, and nothing else.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from graftwork.errors import AdapterError, CompositionError
from graftwork.model import AdapterModel
from tests import zoo
from tests.conftest import PROFILE
from tests.matrix.methods import FAMILIES, METHODS, refusal, small
from tests.rig import randomise, relative

# the paper's own initialisation is the identity
NEUTRAL = {"par_bn", "scaled_par_bn", "lora", "dora", "vera", "ia3", "bitfit"}
# what lengthens the keys, the text or a part of a union: there are no weights under which nothing is changed
NEVER_NEUTRAL = {"prefix_tuning", "prefix_tuning_flat", "prompt_tuning", "mam", "unipelt"}
ROUNDED = {"loreft": 1e-5, "noreft": 1e-5}  # W·x - R·x with W = R is zero but for the order of a sum
# parameters at places that the model computes and does not use: LLaVA reads the vision tower's last layer but one
# and SigLIP the last token of a text, where nothing is edited
UNUSED = {"llava": "vision.layer.1/", "siglip": "text.layer.1/ffn/prefix"}
# computes relative positions for all rows at once, by the linears of query and key: rows cannot differ there
COMMON = {"deberta-v3": {"lora", "dora", "vera", "ia3", "bitfit", "unipelt"}}


class Tiny:
    """One tiny model with every method that it takes, and its inputs."""

    def __init__(self, family: str) -> None:
        self.model = AdapterModel(zoo.model(family)).eval()
        self.inputs = zoo.inputs(family)
        self.plain = self.run(None)

    def run(self, setup: Any, rows: list[int] | None = None) -> Tensor:
        """The base's first output under a setup, for some rows of the inputs; the same draws of a model that draws."""
        given = {key: value if rows is None else value[rows] for key, value in self.inputs.items()}
        extra = {key: given.pop(key) for key in ("encoder_hidden_states",) if key in given}
        torch.manual_seed(0)
        output = self.model(**given, adapters=setup, extra=extra)
        if "text_embeds" in output:  # what compares texts with images has a number for every pair of rows
            return torch.cat((output.text_embeds, output.image_embeds), dim=-1)
        found: Tensor = output[0]
        return found

    def modules(self, name: str) -> dict[str, nn.Module]:
        return self.model.parts.modules_of("adapters", name)

    def parameters(self, name: str) -> dict[str, nn.Parameter]:
        return {f"{site}/{key}": one for site, m in self.modules(name).items() for key, one in m.named_parameters()}


def silence(modules: Iterable[nn.Module]) -> None:
    """Set what every module writes to zero: the last matrix of a bottleneck, of a coupling; the source of an edit."""
    with torch.no_grad():
        for module in modules:
            own = dict(module.named_parameters())
            for key, value in own.items():
                part = key.split(".")[-2] if "." in key else ""
                if part == "up" or key.startswith(("F.2", "G.2")):
                    value.zero_()
            for unit in (one for one in module.modules() if hasattr(one, "source")):
                edit: Any = unit
                edit.source.bias.zero_()
                edit.source.weight.copy_(edit.projection if edit.config.subtract_projection else 0 * edit.projection)


def added(tiny: Tiny, family: str, method: str) -> bool:
    """Add a method to a family's model under its own name, or see that it is refused as it must be."""
    reason = refusal(method, family)
    before = set(tiny.model.parts.state_dict())
    if reason is None:
        tiny.model.add_adapter(key(method), config=small(method))
        return True
    with pytest.raises(AdapterError) as refused:
        tiny.model.add_adapter(key(method), config=small(method))
    assert reason in str(refused.value), method
    assert set(tiny.model.parts.state_dict()) == before
    return False


def key(method: str) -> str:
    return method.replace("+", "-plus")


def check_neutral(tiny: Tiny, method: str) -> None:
    if method not in NEUTRAL:
        silence(tiny.modules(key(method)).values())
    found = tiny.run(key(method))
    if method in ROUNDED:
        assert relative(found, tiny.plain) <= ROUNDED[method], method
    elif method not in NEVER_NEUTRAL:
        assert torch.equal(found, tiny.plain), method


def check_packaged(tiny: Tiny, method: str, expected: Tensor, folder: Path) -> None:
    tiny.model.save_adapter(folder, key(method))
    tiny.model.load_adapter(folder, load_as="again")
    assert torch.equal(tiny.run("again"), expected), method
    tiny.model.delete_adapter("again")


def check_rows(tiny: Tiny, family: str, method: str, other: str) -> None:
    """Three rows, one with the adapter, one with none, one with another: each gives what it gives alone."""
    rows, setup = [0, 1, 0], [key(method), None, key(other)]
    if any("prompt" in name for name in (method, other)):
        setup[1] = setup[0]  # rows of one batch are of one length
        setup[2] = setup[0] if "prompt" in method else setup[2]
        rows, setup = ([1, 0], setup[:2]) if "prompt" in method else ([0, 1], setup[:2])
    if {method, other} & COMMON.get(family, set()):
        with pytest.raises(CompositionError, match="rows of one batch cannot have different adapters"):
            tiny.run(setup, rows)
        return
    together = tiny.run(setup, rows)
    for number, (row, one) in enumerate(zip(rows, setup, strict=True)):
        alone = tiny.run(one, [row])
        assert relative(together[number : number + 1], alone) < 1e-5, (method, one)


def check_gradients(tiny: Tiny, family: str, method: str) -> None:
    """Gradients reach all of the adapter of the first row, and nothing of the base or of other adapters."""
    parts = tiny.model.parts
    parts.requires_grad_(True)
    parts.zero_grad()
    alike = "prompt" in method or method in COMMON.get(family, set())
    setup = [key(method)] * 2 if alike else [key(method), None]
    output = tiny.run(setup)
    (output * torch.randn(output.shape, generator=torch.Generator().manual_seed(3))).sum().backward()
    own = tiny.parameters(key(method))
    reached = {name for name, one in own.items() if one.grad is not None and one.grad.abs().max() > 0}
    unused = {name for name in own if name.startswith(UNUSED.get(family, "none"))}
    assert reached == set(own) - unused, (method, sorted(set(own) - unused - reached)[:5])
    mine = {id(one) for one in own.values()}
    assert not [name for name, one in parts.named_parameters() if one.grad is not None and id(one) not in mine], method
    assert all(one.grad is None for one in tiny.model.base.parameters())
    parts.zero_grad()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_method(family: str, tmp_path: Path) -> None:
    tiny, last = Tiny(family), "seq_bn"
    for number, method in enumerate(METHODS):
        if not added(tiny, family, method):
            continue
        with torch.no_grad():
            check_neutral(tiny, method)
            randomise(tiny.parameters(key(method)).values(), seed=number)
            found = tiny.run(key(method))
            assert found.isfinite().all(), method
            assert found.shape != tiny.plain.shape or relative(found, tiny.plain) > 1e-4, method
            check_packaged(tiny, method, found, tmp_path / key(method))
            thorough = PROFILE == "full" or (number + FAMILIES.index(family)) % 3 == 0
            if thorough:
                check_rows(tiny, family, method, last)
        if thorough:
            check_gradients(tiny, family, method)
        last = method
    assert torch.equal(tiny.run(None).detach(), tiny.plain.detach())
