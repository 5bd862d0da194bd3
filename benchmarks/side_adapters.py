"""AdapterHub's side of a comparison, with adapters==1.3.0: see `side.py`. It loads what graftwork's side wrote."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import adapters
import torch
import transformers
from adapters.composition import Average, BatchSplit, Fuse, Parallel, Stack
from setups import Setup
from side import Call, Inputs, serve
from torch import nn

BLOCKS = {"stack": Stack, "fuse": Fuse, "average": Average, "parallel": Parallel}


class Hub:
    """A transformers model after `adapters.init`, with active adapters, as its documentation shows."""

    def open(self, model: nn.Module, folder: Path, options: dict[str, Any]) -> str:
        """As `Side.open`."""
        adapters.init(model)
        self.model: Any = model
        self.folder = folder / "hub"
        self.loaded: set[str] = set()
        return f"adapters {adapters.__version__}, transformers {transformers.__version__}"

    def write(self, setup: Setup) -> None:
        """As `Side.write`: graftwork's side does."""
        raise NotImplementedError("graftwork's side writes the adapters")

    def _need(self, setup: Setup) -> None:
        for name in setup.adapters:
            if name not in self.loaded:
                self.model.load_adapter(str(self.folder / name), load_as=name)
        if setup.kind == "fuse" and setup.name not in self.loaded:
            self.model.load_adapter_fusion(str(self.folder / setup.name))
        self.loaded |= {*setup.adapters, setup.name}
        self.model.to(self.model.dtype).eval().requires_grad_(False)

    def compile(self) -> None:
        """As `Side.compile`."""
        self.model.compile()

    def prepare(self, setup: Setup, inputs: Inputs) -> tuple[Call, str]:
        """As `Side.prepare`."""
        self._need(setup)
        if setup.kind == "mixed":
            names = setup.rows(len(inputs["input_ids"]))
            return lambda: self.rows(names, inputs), "BatchSplit, rows sorted by adapter and put back"
        active: Any = None
        if setup.kind != "idle":
            active = BLOCKS.get(setup.kind, Stack)(*setup.adapters)
        model, skipped = self.model, list(range(setup.drop))

        def call() -> torch.Tensor:
            model.adapters_config.active_setup = active
            model.adapters_config.skip_layers = skipped
            return model(**inputs).last_hidden_state

        average = "another function: its Average is not the mean of what its members would change"
        return call, average if setup.kind == "average" else ""

    def add(self, name: str) -> None:
        """As `Crowded.add`."""
        self.model.add_adapter(name, config="seq_bn")
        self._cast(name)
        self.model.eval()

    def load(self, name: str) -> None:
        """As `Crowded.load`."""
        self.model.load_adapter(str(self.folder / "seq_bn_0"), load_as=name)
        self._cast(name)

    def _cast(self, name: str) -> None:
        if self.model.dtype != torch.float32:  # what its adapters come in, whatever the base is
            self.model.adapter_to(name, dtype=self.model.dtype)

    def rows(self, names: Sequence[str], inputs: Inputs) -> torch.Tensor:
        """As `Crowded.rows`: BatchSplit wants the rows of an adapter side by side, so they are sorted and put back."""
        order = sorted(range(len(names)), key=names.__getitem__)
        counts = Counter(names[row] for row in order)
        split = BatchSplit(*counts, batch_sizes=list(counts.values())) if len(counts) > 1 else Stack(names[0])
        self.model.adapters_config.active_setup = split
        self.model.adapters_config.skip_layers = []
        if order == list(range(len(order))):
            return self.model(**inputs).last_hidden_state
        places = torch.tensor(order)
        return self.model(**{key: value[places] for key, value in inputs.items()}).last_hidden_state[places.argsort()]


if __name__ == "__main__":
    serve(Hub())
