"""AdapterTrainer: transformers' Trainer for an AdapterModel. What is not said here is as it is there.

    trainer = AdapterTrainer(model=model, args=TrainingArguments(...), train_dataset=..., eval_dataset=...)

It adds twelve things. A step's loss is one mean, however its items are cut into batches (mean.py). Checkpoints hold
adapters, fusions and heads only (the model's `state_dict` gives no more), and each is sealed when it is whole. The
order of the rows is decided by (seed, epoch), so that a resumed run meets the same rows; rows are scored in their own
order. Weight decay leaves the V of a fusion alone. With `base_dropout` false what is frozen rests: it runs as in eval
mode, without dropout. Each step leaves out the adapters of its `drop`, and trains the composition of its `cycle`. A
`monitor` sees the gradients of every step. Batches with states (`entering`) begin behind the layers of a `shortcut`.
Forward and backward can be done elsewhere (`step`), where several trainers share them. A step asks language heads for
no logits but those that its loss reads. And it refuses to train a model of which nothing would learn.
"""

from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import datasets
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler
from transformers import Trainer

from graftwork.compose.tree import fusions, leaves, show
from graftwork.core.fusion import Fusion
from graftwork.core.shortcut import Shortcut
from graftwork.errors import AdapterError, PackageError
from graftwork.model import AdapterModel
from graftwork.train.batches import EncodedRows, ImageRows
from graftwork.train.checkpoint import seal
from graftwork.train.devices import ALONE, Devices
from graftwork.train.drop import Drop
from graftwork.train.full import FullModel
from graftwork.train.language import Cycle
from graftwork.train.mean import items, share
from graftwork.train.monitor import Monitor
from graftwork.train.sampler import LengthGroupedSampler, ShuffledSampler
from graftwork.train.scores import DevScores, as_metrics
from graftwork.train.stream import TextBlocks

# (a batch, the layers without adapters, its share of its optimiser step) -> share · loss, gradients being where they
# belong
Step = Callable[[dict[str, Tensor], Sequence[int], Tensor], Tensor]
_BESIDE = ("entering", "spare")  # what batches bring that is not for the model
_OURS = ("random", "group_by_length")  # train_sampling_strategy that our own sampler answers


class AdapterTrainer(Trainer):  # type: ignore[misc]  # transformers is untyped
    """Trains the parts of an AdapterModel that `train_adapter` or `train_adapter_fusion` chose. Raises AdapterError.

    Set before `train`: step: does forward and backward of a batch in the place of transformers' own. base_dropout:
    whether dropout of the frozen base, and of frozen members, is active. drop: the layers that a step runs without
    adapters. cycle: the compositions that steps take in turn. monitor: sees the gradients of every step. shortcut: of
    the layers that batches with states leave out. devices: whose batches are shared. dev: scores the dev rows in the
    place of transformers' loop.
    """

    step: Step | None = None
    base_dropout = True
    drop: Drop | None = None
    cycle: Cycle | None = None
    monitor: Monitor | None = None
    shortcut: Shortcut | None = None
    devices: Devices = ALONE
    dev: DevScores | None = None
    loss_is_scaled_for_ga = True  # by its share of the step

    def _validate_args(self) -> None:
        super()._validate_args()
        check_model(self.model, needs_training=self.train_dataset is not None)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int] | None:
        rows = self.train_dataset if train_dataset is None else train_dataset
        strategy = self.args.train_sampling_strategy
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        if isinstance(rows, TextBlocks):
            return ShuffledSampler(len(rows), seed, told=rows.set_epoch)
        if strategy not in _OURS or not isinstance(rows, Sized):
            sampler: Sampler[int] | None = super()._get_train_sampler(rows)
            return sampler
        told = rows.set_epoch if isinstance(rows, EncodedRows) else None
        lengths = row_lengths(rows) if strategy == "group_by_length" else None
        return LengthGroupedSampler(lengths or [1] * len(rows), self._train_batch_size, seed, told=told)

    def _get_eval_sampler(self, eval_dataset: Any) -> Sampler[int] | None:
        if self.args.train_sampling_strategy not in _OURS:
            sampler: Sampler[int] | None = super()._get_eval_sampler(eval_dataset)
            return sampler
        return None  # a DataLoader without a sampler takes the rows as they come

    def get_train_dataloader(self) -> Any:
        """As transformers has it; where there are other processes, a batch is that of all of them."""
        sampler = self._get_train_sampler() if self.devices.several else None
        if sampler is None:
            return super().get_train_dataloader()
        return self.devices.loader(self.train_dataset, sampler, self._train_batch_size, self.data_collator)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """As transformers has it, or by `dev`."""
        if self.dev is None:
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)  # type: ignore[no-any-return]
        self.model.eval()
        with torch.no_grad():
            metrics = as_metrics(self.dev(self.model, self._answered))
        self.log(metrics)
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _answered(self, batch: Any) -> tuple[Tensor, Tensor]:
        loss, outputs = self.compute_loss(self.model, self._prepare_inputs(batch), return_outputs=True)
        return loss, outputs["logits"]

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Any], Any]:
        """The batches of one optimiser step, and how many items they hold, on average over processes."""
        batches, counted = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches and self.cycle is not None:
            self.cycle.begin(self.state.global_step)
        if not batches or self.compute_loss_func is not None:  # that function is given transformers' own number
            return batches, counted
        total = torch.stack([items(self.model, batch) for batch in batches]).sum()
        return batches, self.accelerator.reduce(total.to(device, torch.float32), reduction="mean")

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """As transformers has it, or by `step`."""
        loss: Tensor
        if self.step is None:
            loss = super().training_step(model, inputs, num_items_in_batch)
        else:
            inputs = self._prepare_inputs(inputs)
            loss = self.step(inputs, self._dropped, share(self.model, inputs, num_items_in_batch))
        if self.accelerator.sync_gradients:
            self.devices.average([one for one in self.model.parameters() if one.requires_grad])
            if self.monitor is not None:
                self.monitor.see()
            if self.cycle is not None:
                self.cycle.end()
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As transformers', with what the monitor saw since the last point of the training curve."""
        seen = self.monitor.read() if self.monitor is not None and "loss" in logs else {}
        super().log({**logs, **seen}, start_time)

    def _sync_replicated_trainable_parameters(self, model: nn.Module) -> None:
        """What trains is equal in all processes from here on: `training_step` averages its gradients."""
        self.devices.make_equal(one for one in self.model.parameters() if one.requires_grad)

    def _move_model_to_device(self, model: nn.Module, device: torch.device) -> None:
        """A base that lies in several processes is where it belongs."""
        if not getattr(getattr(model, "base", None), "is_distributed_loading_by_transformers", False):
            super()._move_model_to_device(model, device)

    @property
    def _dropped(self) -> Sequence[int]:
        """The layers that this step runs without adapters."""
        return () if self.drop is None else self.drop.layers(self.state.global_step)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """As transformers has it; scored are the logits alone, of the text's own tokens without prompts'."""
        if self.model.training and not self.base_dropout:
            rest(self.model)
        shares = num_items_in_batch is not None and self.compute_loss_func is None
        weight = share(self.model, inputs, num_items_in_batch) if shares else None
        entering, inputs = inputs.get("entering"), {key: inputs[key] for key in inputs if key not in _BESIDE}
        if self.model.training and self.drop is not None:
            inputs["skip_layers"] = self._dropped
        if self.model.training and not return_outputs and self.compute_loss_func is None and not self.label_smoother:
            inputs["scored_only"] = True  # nobody reads the logits
        entered = nullcontext() if entering is None or self.shortcut is None else self.shortcut.entered(entering)
        with entered, self._outputs_whole() if return_outputs else nullcontext():
            found: Any = super().compute_loss(model, inputs, return_outputs, None if shares else num_items_in_batch)
        if weight is not None:
            found = (found[0] * weight, found[1]) if return_outputs else found * weight
        groups: Sequence[Any] = getattr(found[1], "groups", ()) if return_outputs else ()
        return (found[0], {"loss": found[0], "logits": groups[0].text_logits.float()}) if len(groups) == 1 else found

    @contextmanager
    def _outputs_whole(self) -> Iterator[None]:
        """In mixed precision accelerate makes outputs anew, of their keys alone, without the groups; not in here."""
        model: Any = self.accelerator.unwrap_model(self.model)
        inner = vars(model).get("_original_forward")
        if inner is None:
            yield
            return
        around, model.forward = model.forward, inner
        try:
            with self.accelerator.autocast():
                yield
        finally:
            model.forward = around

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """As transformers', without the V of fusions: it begins as the identity, and decay would pull it to zero."""
        fused = (module.value for module in model.modules() if isinstance(module, Fusion) and module.value is not None)
        values = {id(value.weight) for value in fused}
        exempt = {name for name, parameter in model.named_parameters() if id(parameter) in values}
        return [name for name in super().get_decay_parameter_names(model) if name not in exempt]

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        self.devices.wait()  # for the random states of the others, which are in it too
        if self.args.should_save:
            seal(Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}")

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        problems = [f"tensor {key!r} is missing" for key in load_result.missing_keys]
        problems += [f"tensor {key!r} belongs nowhere" for key in load_result.unexpected_keys]
        if problems:
            raise PackageError("the checkpoint does not fit this model: " + "; ".join(problems[:10]))


def rest(model: AdapterModel) -> None:
    """Put what is frozen in eval mode: the base, and every part of which nothing learns. The rest stays as it is."""
    model.base.eval()
    for table in ("adapters", "fusions", "heads", "embeddings"):
        for part in getattr(model.parts, table).values():
            if not any(parameter.requires_grad for parameter in part.parameters()):
                part.eval()


def check_model(model: nn.Module, needs_training: bool) -> None:
    """Raises AdapterError unless a model can be trained here: adapters are chosen, and run in what is active."""
    if isinstance(model, FullModel):
        return
    if not isinstance(model, AdapterModel):
        raise AdapterError(
            f"AdapterTrainer trains an AdapterModel, and this is a {type(model).__name__}; wrap it, "
            "AdapterModel(model), add an adapter and call train_adapter(name)"
        )
    if needs_training and not any(parameter.requires_grad for parameter in model.parameters()):
        raise AdapterError(
            "nothing would be trained: every parameter is frozen. Call model.train_adapter(name), or "
            "model.train_adapter_fusion(Fuse(...)), before training; the model has the adapters "
            f"{', '.join(model.parts.adapter_configs) or 'none yet: call add_adapter first'}"
        )
    chosen = [key for key in (*_parts(model, "adapters"), *_parts(model, "fusions")) if _trains(model, *key)]
    running = {*leaves(model.active_adapters), *(fuse.name for fuse in fusions(model.active_adapters))}
    if needs_training and chosen and not any(name in running for _, name in chosen):
        raise AdapterError(
            f"{', '.join(name for _, name in chosen)} would be trained but does not run: the active setup is "
            f"{show(model.active_adapters)}. Call model.train_adapter(name), or model.set_active_adapters with a "
            "composition that holds it"
        )


def _parts(model: AdapterModel, table: str) -> list[tuple[str, str]]:
    names = model.parts.adapter_configs if table == "adapters" else model.parts.fusion_records
    return [(table, name) for name in names]


def _trains(model: AdapterModel, table: str, name: str) -> bool:
    modules = model.parts.modules_of(table, name).values()
    return any(parameter.requires_grad for module in modules for parameter in module.parameters())


def row_lengths(rows: Any) -> Sequence[int] | None:
    """The number of pieces of every row of a data set; None where its rows have no `input_ids`."""
    if isinstance(rows, EncodedRows):
        return rows.lengths.tolist()  # type: ignore[no-any-return]
    if isinstance(rows, datasets.Dataset):
        return [len(ids) for ids in rows["input_ids"]] if "input_ids" in rows.column_names else None
    if isinstance(rows, ImageRows):
        return None
    if not isinstance(rows, Dataset | Sequence) or not len(rows) or "input_ids" not in rows[0]:  # type: ignore[arg-type]
        return None
    return [len(rows[number]["input_ids"]) for number in range(len(rows))]  # type: ignore[arg-type]
