"""The frozen prefix: with nothing to train in the first k layers, the states behind them are computed once and kept.

Every epoch, and every scoring of the dev rows, then begins at layer k. What is kept follows from the ids of the texts
(in which rows, tokenizer and their limit are), the base, its dtype, and frozen adapters below layer k; all of it is in
the key. It is exact where nothing there is drawn anew: the base and frozen members rest (`training.base_dropout:
false`) and rows are the same in every epoch. States come from other batches than the ones they are read in, and
padding changes how products are rounded: training is the same up to that, to the last bit where batches are the same.

That a model's later layers take nothing from the first ones but their states is proven before anything is trained: rows
of several lengths must get the same logits both ways.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy
import torch
import transformers
from torch import Tensor

from graftwork.compose.parts import SHARED
from graftwork.compose.tree import leaves, show
from graftwork.core.accelerator import to_accelerator
from graftwork.core.kinds import write_config
from graftwork.core.locate import layers_of
from graftwork.core.shortcut import Shortcut
from graftwork.errors import GraftworkError, RecipeError
from graftwork.model import AdapterModel
from graftwork.train.batches import EncodedRows
from graftwork.train.states import Layout, States, Store, cache_root

_TOLERANCES = {torch.float32: 1e-4}  # of the largest number; other dtypes: 0.05
_PROBED = 4  # rows of a batch
_UNITS = {"MB": 10**6, "GB": 10**9}


@dataclass(frozen=True)
class Prefix:
    """The first k layers of a model; `kept` lends the states behind them to the data sets `rows`."""

    model: AdapterModel
    rows: Sequence[EncodedRows]
    shortcut: Shortcut
    layers: int
    layout: Layout
    store: Store
    mixed: torch.dtype | None  # of mixed precision

    @contextmanager
    def kept(self, batch_size: int) -> Iterator[Shortcut]:
        """For the length of the context batches of the data sets bring states, `entering`, for this shortcut.

        batch_size: rows of a forward that makes states. Raises UserError for what the disk refuses.
        """
        rows = self.rows
        table = self.store.open(self._key(), self.layout, lambda states: self._fill(states, batch_size))
        first = 0
        try:
            for one in rows:
                one.states = States(table, self.layout, first).gather
                first += len(one.text_lengths)
            yield self.shortcut
        finally:
            for one in rows:
                one.states = None

    def _fill(self, states: States, batch_size: int) -> None:
        first = 0
        with _resting(self.model):
            for one in self.rows:
                order = numpy.argsort(-one.lengths, kind="stable")
                for start in range(0, len(order), batch_size):
                    chosen = order[start : start + batch_size]
                    states.put(first + one.texts(chosen), self._state(one, chosen))
                first += len(one.text_lengths)

    def _state(self, rows: EncodedRows, chosen: Any) -> Tensor:
        return self.shortcut.state(lambda: _ran(self.model, rows, chosen, self.mixed))

    def _key(self) -> str:
        model = self.model
        config = model.config
        stands_on = {
            "texts": [one.digest for one in self.rows],
            "base": [model.backbone.fingerprint, str(getattr(config, "quantization_config", None))],
            "layers": self.layers,
            "types": [str(model.dtype), str(self.mixed), str(self.layout.dtype), model.device.type],
            "below": _frozen(model),
            "code": [torch.__version__, transformers.__version__, str(getattr(config, "_attn_implementation", None))],
        }
        return hashlib.sha256(json.dumps(stands_on, sort_keys=True).encode()).hexdigest()[:40]


def plan(
    model: AdapterModel, rows: Sequence[EncodedRows], asked: str, mixed: torch.dtype | None
) -> tuple[Prefix | None, str]:
    """What a recipe's `training.prefix_cache` comes to, and a note about it.

    rows: the data sets. mixed: the dtype of mixed precision, or None. Raises RecipeError where a size is asked for and
    nothing can be kept; `auto` notes the reason and goes without.
    """
    if asked == "off":
        return None, ""
    to_accelerator(model)  # what has which dtype may differ there
    made = _planned(model, rows, asked, mixed)
    if isinstance(made, Prefix):
        size = f"{made.layout.bytes / 10**6:,.1f} MB in {made.store.root}"
        count = len(layers_of(model.backbone.trunk, model.backbone.family.stacks[0]))
        return made, f"the first {made.layers} of {count} layers are frozen: their states are computed once ({size})"
    if asked == "auto":
        return None, f"training.prefix_cache: nothing is kept: {made}"
    raise RecipeError(f"training.prefix_cache: {asked}: {made}; set it to off")


def _planned(model: AdapterModel, rows: Sequence[EncodedRows], asked: str, mixed: torch.dtype | None) -> "Prefix | str":
    """The prefix, or the reason why there is none."""
    stacks = model.backbone.family.stacks
    if len(stacks) > 1 and not model.config.is_encoder_decoder:
        return "the base has several towers, and which of them a row runs through is not known"
    layers = layers_of(model.backbone.trunk, stacks[0])
    count = untrained(model)
    if not count:
        return "something trains in the first layer or before it, so no states stay what they were"
    shortcut = Shortcut(layers[:count], layers[count:])
    with _resting(model):
        try:
            state, reason = _proven(model, shortcut, rows[0], mixed)
        except (GraftworkError, RuntimeError, TypeError, ValueError, AttributeError, IndexError) as error:
            return f"layer {count} of this base needs more than the states before it ({str(error).splitlines()[0]})"
    if reason:
        return reason
    lengths = numpy.concatenate([one.text_lengths for one in rows])
    layout = Layout(lengths, int(state.shape[-1]), state.dtype)
    store = Store(cache_root(os.environ), None if asked == "auto" else int(asked[:-2]) * _UNITS[asked[-2:]])
    if layout.bytes > store.room:
        gigabytes = f"{layout.bytes / 10**9:.2f} GB"
        return f"the states of all rows are {gigabytes}, and there is room for {store.room / 10**9:.2f} GB"
    return Prefix(model, rows, shortcut, count, layout, store, mixed)


def untrained(model: AdapterModel) -> int:
    """How many of the first layers of the first stack run before anything that trains; 0 where embeddings train."""
    stack, parts = model.backbone.family.stacks[0], model.parts
    found = len(layers_of(model.backbone.trunk, stack))
    sites = {site.name: site for site in model.backbone.sites}
    if any(parameter.requires_grad for parameter in (*parts.embeddings.parameters(), *model.base.parameters())):
        return 0
    for table in ("adapters", "fusions"):
        for name in parts.records(table):
            modules = parts.modules_of(table, name)
            if not any(parameter.requires_grad for module in modules.values() for parameter in module.parameters()):
                continue
            for site in (sites[place] for place in modules if place != SHARED):
                if site.layer < 0 or site.stack == stack.name:
                    found = min(found, max(site.layer, 0))
    return found


def _proven(
    model: AdapterModel, shortcut: Shortcut, rows: EncodedRows, mixed: torch.dtype | None
) -> tuple[Tensor, str]:
    """The states of a few rows, and why they do not do in the place of the layers before them, "" where they do."""
    by_length = numpy.argsort(rows.lengths, kind="stable")
    chosen = by_length[numpy.linspace(0, len(rows) - 1, min(_PROBED, len(rows)), dtype=numpy.int64)]
    state = shortcut.state(lambda: _ran(model, rows, chosen, mixed))
    texts = rows.texts(chosen)
    kept = rows.text_lengths[texts]
    if state.dim() != 3 or state.shape[:2] != (len(texts), kept.max()):
        return state, f"its states have the shape {tuple(state.shape)}, not one for each token of a text"
    layout = Layout(kept, state.shape[-1], state.dtype)
    table = States(torch.zeros(layout.tokens, layout.width, dtype=layout.dtype), layout)
    numbers = numpy.arange(len(texts))
    table.put(numbers, state)
    whole = _ran(model, rows, chosen, mixed)
    with shortcut.entered(table.gather(numbers, state.shape[1]).to(state.device)):
        short = _ran(model, rows, chosen, mixed)
    limit = _TOLERANCES.get(layout.dtype, 0.05) * float(whole.abs().max())
    if whole.shape != short.shape or not float((whole - short).abs().max()) <= limit:
        return state, "later layers of this base take more from the first ones than their states"
    return state, ""


def _ran(model: AdapterModel, rows: EncodedRows, chosen: Any, mixed: torch.dtype | None) -> Tensor:
    """The trunk's last states for some rows, as training runs it, with zeros where no token is."""
    batch = {key: value.to(model.device) for key, value in rows.__getitems__(chosen).items()}
    last: list[Tensor] = []
    handle = model.backbone.trunk.register_forward_hook(lambda module, args, output: last.append(output[0]))
    autocast = torch.autocast(model.device.type, dtype=mixed or torch.bfloat16, enabled=mixed is not None)
    try:
        with torch.no_grad(), autocast:
            model(**batch)
    finally:
        handle.remove()
    mask = batch["attention_mask"].flatten(0, -2).unsqueeze(-1)
    found = last[0].float()
    return found if model.config.is_encoder_decoder else found * mask  # a decoder has tokens of its own


@contextmanager
def _resting(model: AdapterModel) -> Iterator[None]:
    """Nothing is drawn, and compositions run as they do in training."""
    training, execution = model.training, model.execution
    model.eval()
    model.execution = "reference"
    try:
        yield
    finally:
        model.execution = execution
        model.train(training)


def _frozen(model: AdapterModel) -> Any:
    """What the frozen adapters of the composition are, or None where the base alone runs below what trains."""
    tree, parts = model.active_adapters, model.parts
    digests = {}
    for name in leaves(tree):
        modules = parts.modules_of("adapters", name).values()
        if any(parameter.requires_grad for module in modules for parameter in module.parameters()):
            continue
        tensors = hashlib.sha256()
        for key, tensor in sorted(parts.tensors("adapters", name).items()):
            data = tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
            tensors.update(f"{key} {tuple(tensor.shape)} {tensor.dtype} ".encode() + data)
        reading = parts.semantics.get(("adapters", name), "")
        digests[name] = [write_config(parts.adapter_configs[name]), reading, tensors.hexdigest()]
    return {"composition": show(tree), "adapters": digests} if digests else None
