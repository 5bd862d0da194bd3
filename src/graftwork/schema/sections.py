"""The sections of a recipe as typed, frozen data: what each key may be, and what it is where a recipe is silent.

`recipe.py` puts them together and reads them. Knows no YAML, no tensors and no rows.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from graftwork.schema.values import (
    Columns,
    Count,
    Cycled,
    Flag,
    Label,
    Layer,
    LayersDropped,
    Member,
    NotNegative,
    Positive,
    PrefixCache,
    ReductionFactor,
    Reference,
    Scaling,
    Scheduler,
    Share,
    TaskKind,
    Text,
    TrainingMethod,
    Whole,
)


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class ModelSection(Section):
    """The frozen base: a model id, a folder, or `minilm`, the encoder of the [demo] extra."""

    name: Text
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    revision: Text | None = None
    quantisation: Literal["4bit", "8bit"] | None = None  # of the frozen linears, by bitsandbytes


class AdapterSection(Section):
    """The adapter to train: a named config or config string, flags that change it, and what it is composed with.

    A flag left at null keeps the value of the variant.
    """

    variant: Text = "seq_bn"
    reduction_factor: ReductionFactor | None = None
    non_linearity: Text | None = None
    original_ln_before: Flag | None = None
    original_ln_after: Flag | None = None
    ln_before: Flag | None = None
    ln_after: Flag | None = None
    init_weights: Literal["bert", "mam_adapter", "houlsby", "adapter_bert"] | None = None
    init_weights_seed: Whole | None = None
    is_parallel: Flag | None = None
    scaling: Scaling | None = None
    use_gating: Flag | None = None
    residual_before_ln: Flag | Literal["post_add"] | None = None
    adapter_residual_before_ln: Flag | None = None
    leave_out: tuple[Layer, ...] | None = None
    dropout: Share | None = None
    stochastic_depth: Share | None = None
    mh_adapter: Flag | None = None
    output_adapter: Flag | None = None
    cross_adapter: Flag | None = None
    options: dict[str, JsonValue] | None = None  # of other methods: lora has r, alpha, …
    composition: Literal["stack", "fuse"] | None = None
    language_adapter: Reference | Cycled | None = None  # stack: lies below, stays frozen; of several one in each step
    task_adapter: Reference | None = None  # stack: where training starts; null = a new adapter
    members: tuple[Member, ...] | None = None  # fuse; one that is a recipe is trained first
    role: Literal["task", "language"] | None = None  # null = language for a language model that is trained alone

    def overrides(self) -> dict[str, Any]:
        """The flags and options that the recipe sets, for the variant to take over."""
        return self.model_dump(mode="json", include=set(ADAPTER_FLAGS), exclude_none=True) | (self.options or {})


# what is no property of the adapter itself, and may stand beside the members of a fusion
NOT_FLAGS = ("variant", "composition", "language_adapter", "task_adapter", "members", "role")
ADAPTER_FLAGS = tuple(key for key in AdapterSection.model_fields if key not in (*NOT_FLAGS, "options"))


class TrainingSection(Section):
    """Beside an adapter there are baselines: `full` tunes the whole model, `head` the head, `peft` what PEFT has."""

    method: TrainingMethod = "adapter"
    epochs: Count = 5
    batch_size: Count = 32
    learning_rate: Positive = 1e-4
    warmup_ratio: Share = 0.06
    lr_scheduler: Scheduler = "linear"
    max_seq_length: Count = 256
    weight_decay: NotNegative = 0.01
    seed: Whole = 0
    early_stopping_patience: Count | None = None
    metric: Text | None = None  # null = the task's main score
    eval_batch_size: Count = Field(default_factory=lambda fields: int(fields.get("batch_size", 32)))
    gradient_accumulation: Count = 1
    max_grad_norm: NotNegative = 1.0
    bf16: Literal["auto"] | Flag = "auto"
    max_steps: Count | None = None
    logging_steps: Count = 50
    parallel: Literal["ddp", "fsdp", "tp"] = "ddp"  # what several processes share, where there are several
    gradient_checkpointing: Flag = False  # layers are computed again in the backward, in the place of being kept
    base_dropout: Flag = True  # of what is frozen, while training
    drop: LayersDropped | None = None  # AdapterDrop: how many of the lowest layers a step runs without adapters
    prefix_cache: PrefixCache = "off"  # states behind the layers below everything that trains
    fusion_regularisation: Flag = True  # fuse: 0.01·‖V - I‖² of every layer inside the loss
    screen_members: Flag = True  # fuse: each member's own score on the dev rows before the fusion trains


class ServingSection(Section):
    """What the package says about serving it."""

    multi_adapter: Flag = False
    adapter_cache_size: Count = 32


class TaskSection(Section):
    """What is learned. `labels` fixes the labels and their order; null = those of the training rows, sorted.

    `pooling`: the hidden state that stands for a row; null = as the base's kind has it (first token, or last).
    `head`: a package whose head answers and stays frozen; null = a new head trains.
    """

    kind: TaskKind
    labels: Annotated[tuple[Label, ...], Field(min_length=2)] | None = None
    pooling: Literal["first", "last", "mean"] | None = None
    head: Reference | None = None


class HubSource(Section):
    """A data set on the Hugging Face Hub; `train`, `dev` and `test` then name its splits."""

    id: Text
    config: Text | None = None
    revision: Text | None = None


class DataSection(Section):
    """Where the rows are: .jsonl, .csv, .parquet or .txt files, or splits of `hub`. `columns`: our field -> theirs."""

    train: Text
    dev: Text | None = None  # null = a tenth of train is held out
    test: Text | None = None
    hub: HubSource | None = None
    columns: Columns = Field(default_factory=dict)
