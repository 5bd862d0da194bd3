"""PEFT's side of a comparison: see `side.py`. It has no bottleneck adapters: LoRA alone, one or one a row, or idle."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from setups import Setup
from side import Call, Inputs, serve
from torch import nn


class Peft:
    """A PeftModel with unmerged LoRA, as its documentation shows."""

    def open(self, model: nn.Module, folder: Path, options: dict[str, Any]) -> str:
        """As `Side.open`."""
        self.base: Any = model
        self.model: Any = None
        self.folder = folder / "peft"
        return f"peft {peft.__version__}, transformers {transformers.__version__}"

    def write(self, setup: Setup) -> None:
        """As `Side.write`: graftwork's side does."""
        raise NotImplementedError("graftwork's side writes the adapters")

    def _need(self, names: list[str]) -> None:
        for name in names:
            if self.model is None:
                self.model = peft.PeftModel.from_pretrained(self.base, str(self.folder / name), adapter_name=name)
            elif name not in self.model.peft_config:
                self.model.load_adapter(str(self.folder / name), adapter_name=name)
        self.model.eval().requires_grad_(False)

    def compile(self) -> None:
        """As `Side.compile`."""
        self.model.compile()

    def prepare(self, setup: Setup, inputs: Inputs) -> tuple[Call, str]:
        """As `Side.prepare`; a mixed batch is one of LoRA, and idle LoRA is switched off."""
        if setup.name != "lora" and setup.kind not in ("mixed", "idle"):
            raise NotImplementedError("PEFT has no bottleneck adapters and no blocks")
        names = [f"lora_{number}" for number in range(setup.members)]
        self._need(names)
        model = self.model
        if setup.kind == "mixed":
            rows = [names[row % setup.members] for row in range(len(inputs["input_ids"]))]
            return lambda: model(**inputs, adapter_names=rows).last_hidden_state, "another function: LoRA, r=8"
        if setup.kind == "idle":

            def idle() -> torch.Tensor:
                with model.disable_adapter():
                    return model(**inputs).last_hidden_state

            return idle, "LoRA, switched off"
        model.set_adapter("lora_0")
        return lambda: model(**inputs).last_hidden_state, "unmerged"

    def add(self, name: str) -> None:
        """As `Crowded.add`: LoRA of rank 8."""
        config = peft.LoraConfig(r=8, lora_alpha=8, target_modules=["query", "value"])
        if self.model is None:
            self.model = peft.get_peft_model(self.base, config, adapter_name=name)
        else:
            self.model.add_adapter(name, config)
        self.model.eval()

    def load(self, name: str) -> None:
        """As `Crowded.load`."""
        self.model.load_adapter(str(self.folder / "lora_0"), adapter_name=name)

    def rows(self, names: Sequence[str], inputs: Inputs) -> torch.Tensor:
        """As `Crowded.rows`."""
        return self.model(**inputs, adapter_names=list(names)).last_hidden_state


if __name__ == "__main__":
    serve(Peft())
