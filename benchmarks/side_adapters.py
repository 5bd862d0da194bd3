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

    def prepare(self, setup: Setup, inputs: Inputs) -> tuple[Call, str]:
        """As `Side.prepare`."""
        self._need(setup)
        remark = ""
        if setup.kind == "idle":
            active: Any = None
        elif setup.kind == "one":
            active = Stack(setup.adapters[0])
        elif setup.kind == "mixed":
            rows = setup.rows(len(inputs["input_ids"]))
            order = sorted(rows, key=setup.adapters.index)  # BatchSplit wants the rows of an adapter side by side
            active = BatchSplit(*setup.adapters, batch_sizes=[order.count(name) for name in setup.adapters])
            remark = "BatchSplit" + (", rows sorted by adapter" if rows != order else "")
        else:
            active = BLOCKS[setup.kind](*setup.adapters)
        if setup.kind == "average":
            remark = "another function: its Average adds half of what it should"
        model = self.model

        def call() -> torch.Tensor:
            model.adapters_config.active_setup = active
            model.adapters_config.skip_layers = list(range(setup.drop))
            return model(**inputs).last_hidden_state

        return call, remark

    def add(self, name: str) -> None:
        """As `Crowded.add`."""
        self.model.add_adapter(name, config="seq_bn")
        self.model.eval()

    def load(self, name: str) -> None:
        """As `Crowded.load`."""
        self.model.load_adapter(str(self.folder / "seq_bn_0"), load_as=name)

    def rows(self, names: Sequence[str], inputs: Inputs) -> torch.Tensor:
        """As `Crowded.rows`: BatchSplit, with the rows of an adapter side by side."""
        order = sorted(range(len(names)), key=names.__getitem__)
        counts = Counter(names[row] for row in order)
        split = BatchSplit(*counts, batch_sizes=list(counts.values())) if len(counts) > 1 else Stack(names[0])
        self.model.adapters_config.active_setup = split
        self.model.adapters_config.skip_layers = []
        places = torch.tensor(order)
        return self.model(**{key: value[places] for key, value in inputs.items()}).last_hidden_state


if __name__ == "__main__":
    serve(Hub())
