"""Training steps of one library, timed against its own frozen base, as rows of JSON on stdout.

    python benchmarks/steps.py graftwork --setups seq_bn,fuse3 [--shape 8x64] [--layers 12] [--width 768]
                               [--dtype float32] [--rounds 5] [--clock cpu]

`training.py` runs this script for every library in that library's environment. A step is forward, a mean square of the
last hidden states as loss (the head: its own), backward, and AdamW. In turns with it runs the forward of the base
alone, without a graph, and a row says the quotient. `kept` are the megabytes that autograd holds between forward and
backward, weights not counted. Knows torch and transformers; the library is imported by name.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel
from transformers.utils import logging

from graftwork.timing import CLOCKS, alternate, milliseconds, quotients

SEQ, LORA = "seq_bn[reduction_factor=16]", "lora[r=8,alpha=8]"
ADAPTERS = {"seq_bn": SEQ, "double_seq_bn": "double_seq_bn[reduction_factor=16]", "lora": LORA}
Run = Callable[[], Tensor]  # the forward of a step and its loss


def base_of(layers: int, width: int) -> BertModel:
    """A BERT encoder with random weights."""
    torch.manual_seed(0)
    heads = max(1, width // 64)
    return BertModel(
        BertConfig(
            vocab_size=1000,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=4 * width,
        ),
        add_pooling_layer=False,
    )


class Ours:
    """graftwork. Beside the common setups: `_textbook` fusions with a key and a value of every member, `_top` adapters
    in the upper half of the layers, `_kept` the same behind known states, `_rests` with a base that rests, `head`,
    `full`."""

    def __init__(self, base: BertModel) -> None:
        from graftwork.model import AdapterModel

        self.model = AdapterModel(base)
        self.layers = len(base.encoder.layer)

    def run(self, setup: str, inputs: dict[str, Tensor]) -> Run:
        """Make a setup ready to train and return its forward."""
        from graftwork.train.trainer import rest

        model = self.model
        if setup == "full":
            model.train().requires_grad_(True)
            return lambda: model(**inputs, adapters=None, head="none").last_hidden_state.square().mean()
        if setup == "head":
            return self._head(inputs)
        tree = self._trained(setup)
        if "rests" in setup or "kept" in setup:
            rest(model)

        def run() -> Tensor:
            loss: Tensor = model(**inputs, adapters=tree, head="none").last_hidden_state.square().mean()
            return loss

        return self._behind(run) if "kept" in setup else run

    def _head(self, inputs: dict[str, Tensor]) -> Run:
        self.model.add_classification_head("head", num_labels=2)
        self.model.parts.train_only([("heads", "head")])
        self.model.train()
        labels = torch.zeros(len(inputs["input_ids"]), dtype=torch.long)

        def run() -> Tensor:
            loss: Tensor = self.model(**inputs, labels=labels, adapters=None, head="head").loss
            return loss

        return run

    def _trained(self, setup: str) -> Any:
        model, kind = self.model, setup.partition("_top")[0].removesuffix("_rests").removesuffix("_textbook")
        if not kind.startswith("fuse"):
            left = f",leave_out={list(range(self.layers // 2))}" if "_top" in setup else ""
            model.add_adapter(setup, f"{ADAPTERS[kind].removesuffix(']')}{left}]")
            model.train_adapter(setup)
            return setup
        members = [f"{setup}-{number}" for number in range(int(kind.removeprefix("fuse")))]
        for name in members:
            model.add_adapter(name, SEQ)
        model.add_adapter_fusion(members, name=setup)
        if setup.endswith("_textbook"):
            for module in model.parts.modules_of("fusions", setup).values():
                module.__class__ = textbook()
        tree = f"Fuse({', '.join(members)}, name={setup})"
        model.train_adapter_fusion(tree)
        return tree

    def _behind(self, run: Run) -> Run:
        from graftwork.core.shortcut import Shortcut

        layers = list(self.model.base.encoder.layer)
        shortcut = Shortcut(layers[: self.layers // 2], layers[self.layers // 2 :])
        with torch.no_grad():
            state = shortcut.state(run)

        def behind() -> Tensor:
            with shortcut.entered(state):
                return run()

        return behind


def textbook() -> type[nn.Module]:
    """The paper's form of a fusion, over the parameters of ours."""
    from graftwork.core.fusion import Fusion

    class Textbook(Fusion):
        def forward(self, x: Tensor, changes: list[Tensor], residual: Tensor | None = None) -> Tensor:
            stacked = torch.stack(changes, dim=2)
            weights = torch.einsum("btd,btkd->btk", self.query(x), self.key(stacked)).softmax(-1)
            return torch.einsum("btk,btkd->btd", weights, self.value(stacked))

    return Textbook


class Hub:
    """AdapterHub's adapters, as its documentation shows."""

    def __init__(self, base: BertModel) -> None:
        import adapters

        adapters.init(base)
        self.model: Any = base

    def run(self, setup: str, inputs: dict[str, Tensor]) -> Run:
        """As `Ours.run`."""
        from adapters.composition import Fuse

        model = self.model
        if setup.startswith("fuse"):
            members = [f"{setup}-{number}" for number in range(int(setup.removeprefix("fuse")))]
            for name in members:
                model.add_adapter(name, config=SEQ)
            model.add_adapter_fusion(Fuse(*members))
            model.train_adapter_fusion(Fuse(*members))
        else:
            model.add_adapter(setup, config=ADAPTERS[setup])
            model.train_adapter(setup)
        model.to(model.dtype).train()  # what is new is float32, whatever the base is
        return lambda: model(**inputs).last_hidden_state.square().mean()


class Peft:
    """PEFT, as its documentation shows: LoRA alone, its weights in the base's dtype as the others'."""

    def __init__(self, base: BertModel) -> None:
        self.base, self.model = base, base

    def run(self, setup: str, inputs: dict[str, Tensor]) -> Run:
        """As `Ours.run`. Raises NotImplementedError for a setup that PEFT has not."""
        import peft

        if setup != "lora":
            raise NotImplementedError(f"PEFT has no {setup}")
        config = peft.LoraConfig(r=8, lora_alpha=8, target_modules=["query", "value"])
        model = self.model = peft.get_peft_model(self.base, config, autocast_adapter_dtype=False).train()
        return lambda: model(**inputs).last_hidden_state.square().mean()


LIBRARIES: dict[str, Callable[[BertModel], Any]] = {"graftwork": Ours, "adapters": Hub, "peft": Peft}


def kept(run: Run, model: nn.Module) -> float:
    """Megabytes that autograd holds after a forward, without the model's own weights."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    held: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = run()
    total = sum(held.values()) / 1e6
    del loss
    return total


def inputs_of(rows: int, tokens: int) -> dict[str, Tensor]:
    """One batch of text, the same for every library, (B, T)."""
    ids = torch.randint(0, 1000, (rows, tokens), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def measured(
    library: str,
    setups: Sequence[str],
    shape: tuple[int, int, int, int],
    rounds: int,
    clock: str,
    dtype: str = "float32",
) -> list[dict[str, Any]]:
    """One row a setup; shape: rows, tokens, layers, width. The base is the same for all setups."""
    rows, tokens, layers, width = shape
    inputs = inputs_of(rows, tokens)
    bare, under = (base_of(layers, width).to(getattr(torch, dtype)) for _ in range(2))
    bare.eval().requires_grad_(False)
    under.load_state_dict(bare.state_dict(), assign=True)  # one set of weights: neither finds the caches colder
    side, found = LIBRARIES[library](under), []

    base = torch.no_grad()(lambda: bare(**inputs))

    for setup in setups:
        side.model.requires_grad_(False)
        run = side.run(setup, inputs)
        optimizer = torch.optim.AdamW([one for one in side.model.parameters() if one.requires_grad], lr=1e-6)

        def step(run: Run = run, optimizer: torch.optim.Optimizer = optimizer) -> None:
            optimizer.zero_grad()
            run().backward()
            optimizer.step()

        times = alternate({"base": base, "step": step}, rounds, clock)
        ratio = quotients(times["step"], times["base"])
        found.append(
            {
                "setup": setup,
                "side": library,
                "ratio": ratio.middle,
                "low": ratio.low,
                "high": ratio.high,
                "milliseconds": milliseconds(times["step"]),
                "base_milliseconds": milliseconds(times["base"]),
                "kept_megabytes": kept(run, side.model),
                "shape": f"{rows}x{tokens}",
                "layers": layers,
                "width": width,
                "dtype": dtype,
                "threads": torch.get_num_threads(),
                "versions": f"{library} {version(library)}, transformers {version('transformers')}",
            }
        )
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", choices=LIBRARIES)
    parser.add_argument("--setups", required=True)
    parser.add_argument("--shape", default="8x64", help="rows x tokens")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clock", choices=CLOCKS, default="cpu")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    rows, tokens = map(int, asked.shape.split("x"))
    shape = (rows, tokens, asked.layers, asked.width)
    setups = asked.setups.split(",")
    print(json.dumps(measured(asked.library, setups, shape, asked.rounds, asked.clock, asked.dtype)))


if __name__ == "__main__":
    main()
