"""What answering costs with what a job trains, beside its frozen base: both in one process, in turns.

The same dev rows go through both, in one batch, with a head each: the model with its adapter (or the tuned copy), and
the base as it was loaded, with no hook of any adapter. Weights do not matter for it, so a model that has not trained
will do. A price of 1.05 is 5 % more time. It is one of this batch on this machine: with short texts and few rows the
calls of an adapter weigh more than its arithmetic (docs/benchmarks.md has it by batch and length).
"""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from graftwork.build import add_task_head, open_model
from graftwork.core.accelerator import finish, to_accelerator
from graftwork.timing import alternate, milliseconds, quotients
from graftwork.train.full import FullModel
from graftwork.train.job import Job

ROWS = 32  # of the batch, drawn evenly from the dev rows, long and short
SECONDS = 2.0  # about as long as it takes
ROUNDS = (5, 40)


def price(job: Job) -> dict[str, Any]:
    """{"low", "middle", "high"}: quartiles of time with over time without; "rows", "pieces" of the batch (0: image)."""
    count = len(job.encoded["dev"])
    places = sorted({count * number // min(ROWS, count) for number in range(min(ROWS, count))})
    own = job.learner.model if isinstance(job.learner, FullModel) else job.model
    to_accelerator(own)  # nothing has moved that of a run that was read back
    device = own.device
    inputs = {key: value.to(device) for key, value in job.sets["dev"].__getitems__(places).items() if key != "entering"}
    bare = open_model(job.recipe.model)
    bare.to(device)
    add_task_head(bare, job.task, job.setup.name, job.recipe.task.pooling)
    composition = None if own is not job.model else job.setup.composition
    rivals = {
        "with": _forward(own, inputs, composition, job.setup.name),
        "without": _forward(bare, inputs, None, job.setup.name),
    }
    clock = "cpu" if device.type == "cpu" and torch.get_num_threads() == 1 else "wall"
    first = milliseconds(alternate(rivals, 1, clock)["without"])
    rounds = min(ROUNDS[1], max(ROUNDS[0], round(1e3 * SECONDS / (2 * first))))
    times = alternate(rivals, rounds, clock)
    found = asdict(quotients(times["with"], times["without"]))
    texts = inputs.get("input_ids")
    return found | {"rows": len(places), "pieces": 0 if texts is None else texts.shape[-1]}


def _forward(model: Any, inputs: Any, composition: Any, head: str) -> Callable[[], None]:
    model.eval()

    def run() -> None:
        with torch.inference_mode():
            model(**inputs, adapters=composition, head=head)
        finish(model.device)

    return run
