"""graftwork's side of a comparison: see `side.py`. Its adapters are the ones that all sides run."""

from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from setups import METHODS, Setup
from side import Call, Inputs, agreed, serve
from torch import nn

from graftwork.importing import facts_of
from graftwork.model import AdapterModel
from graftwork.registry.foreign.adapterhub_write import write_adapterhub
from graftwork.registry.foreign.peft_write import write_peft


class Graftwork:
    """An AdapterModel as a user holds it; options: `execution`, where it is not to be the default."""

    def open(self, model: nn.Module, folder: Path, options: dict[str, Any]) -> str:
        """As `Side.open`."""
        torch.manual_seed(2)
        self.model = AdapterModel(model).eval()
        self.model.execution = options.get("execution") or self.model.execution
        self.folder = folder
        return f"graftwork {version('graftwork')}, transformers {transformers.__version__}"

    def _need(self, setup: Setup) -> None:
        for name in setup.adapters:
            if name not in self.model.parts.adapter_configs:
                self.model.add_adapter(name, METHODS[setup.method])
                for module in self.model.parts.modules_of("adapters", name).values():
                    for parameter in module.parameters():  # at birth a LoRA changes nothing, and shows nothing
                        nn.init.normal_(parameter, std=0.02)
        if setup.kind == "fuse" and setup.name not in self.model.parts.fusion_records:
            self.model.add_adapter_fusion(list(setup.adapters), name=setup.name)
        self.model.eval().requires_grad_(False)

    def write(self, setup: Setup) -> None:
        """As `Side.write`: packages under `packages`, AdapterHub's files under `hub`, PEFT's under `peft`."""
        if setup.kind == "base":
            return
        if setup.kind in ("mixed", "idle") and setup.method != "lora":
            self.write(replace(setup, method="lora"))  # what PEFT has in the place of bottlenecks
        self._need(setup)
        fusion = [setup.name] if setup.kind == "fuse" else []
        facts = facts_of(self.model.backbone)
        for name in [*setup.adapters, *fusion]:
            self.model.save_adapter(self.folder / "packages" / name, name)
            package = self.model.package(name)
            if not (self.folder / "hub" / name).exists():
                write_adapterhub(package, self.folder / "hub" / name, facts)
            if setup.method == "lora" and not (self.folder / "peft" / name).exists():
                write_peft(package, self.folder / "peft" / name, facts)

    def compile(self) -> None:
        """As `Side.compile`: its trunk as one graph."""
        self.model.compile()

    def prepare(self, setup: Setup, inputs: Inputs) -> tuple[Call, str]:
        """As `Side.prepare`, and compares the answer with that of the reference executor."""
        self._need(setup)
        model, skip = self.model, tuple(range(setup.drop))
        composed = setup.rows(len(inputs["input_ids"])) if setup.kind == "mixed" else setup.expression()
        if setup.kind == "fuse":
            composed = f"{composed[:-1]}, name={setup.name})"

        def call() -> torch.Tensor:
            return model(**inputs, adapters=composed, skip_layers=skip).last_hidden_state

        chosen = model.execution
        with torch.inference_mode():
            found = call()
            model.execution = "reference"
            expected = call()
        model.execution = chosen
        off = agreed(found, expected, f"{setup.name}: {chosen} beside the reference")
        return call, f"{chosen}, {off:.0e} from the reference"

    def add(self, name: str) -> None:
        """As `Crowded.add`."""
        self.model.add_adapter(name, METHODS["seq_bn"])

    def load(self, name: str) -> None:
        """As `Crowded.load`, from a package."""
        self.model.load_adapter(self.folder / "packages" / "seq_bn_0", load_as=name)

    def rows(self, names: Sequence[str], inputs: Inputs) -> torch.Tensor:
        """As `Crowded.rows`."""
        return self.model(**inputs, adapters=names).last_hidden_state


if __name__ == "__main__":
    serve(Graftwork())
