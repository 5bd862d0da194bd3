"""How good a model in training is on its dev rows: answers scored by the task itself, and the mean loss of their items.

The rows are taken in their order, a batch at a time, so that no more than a batch of logits is kept. Several processes
answer a portion of each batch and put their answers together. What is not finite in one is an error in all, once all
have come to the end: none waits for another.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from graftwork.errors import GoalMissed
from graftwork.tasks.encoded import Encoded
from graftwork.tasks.task import Answer, Row, Task
from graftwork.train.batches import EncodedRows, ImageRows
from graftwork.train.devices import Devices
from graftwork.train.mean import items
from graftwork.train.stream import TextBlocks

Forward = Callable[[Mapping[str, Tensor]], tuple[Tensor, Tensor]]  # a batch -> its mean loss, logits (B, ...)


@dataclass
class _Found:
    """What one process found: answers by row, the sum of the losses of so many items, and whether all is finite."""

    answers: dict[int, Answer]
    loss: float = 0.0
    items: int = 0
    finite: bool = True


@dataclass(frozen=True)
class DevScores:
    """The dev rows of a job: as data, encoded and as a data set, all in one order; and how many are asked at once."""

    task: Task
    rows: Sequence[Row]
    encoded: Sequence[Encoded]
    batches: EncodedRows | ImageRows | TextBlocks
    size: int
    devices: Devices

    def __call__(self, model: nn.Module, forward: Forward) -> dict[str, float]:
        """name -> score, and "loss". Raises GoalMissed for answers that are not finite."""
        found = self.devices.gathered(self._own(model, forward))
        if not all(one.finite for one in found):
            said = "the model answers with numbers that are not finite; lower training.learning_rate"
            self.devices.fail(GoalMissed(f"training diverged: {said}"))
        answers = {row: answer for one in found for row, answer in one.answers.items()}
        loss = sum(one.loss for one in found) / max(1, sum(one.items for one in found))
        return {"loss": loss, **self.task.score([answers[row] for row in range(len(self.rows))], self.rows)}

    def _own(self, model: nn.Module, forward: Forward) -> _Found:
        found = _Found({})
        for start in range(0, len(self.rows), self.size):
            numbers = self.devices.portion(range(start, min(start + self.size, len(self.rows))))
            batch = self.batches.__getitems__(numbers or [0])
            loss, logits = forward(batch)
            if not numbers:
                continue
            logits, count = logits.float().cpu(), int(items(model, batch))
            found.loss += float(loss) * count
            found.items += count
            found.finite &= bool(torch.isfinite(logits).all())
            if found.finite:
                pairs = zip(numbers, logits, strict=True)
                found.answers |= {row: self.task.decode(own, self.encoded[row]) for row, own in pairs}
        return found


def as_metrics(scores: Mapping[str, float]) -> dict[str, Any]:
    """Scores under the names that transformers' Trainer has for them."""
    return {f"eval_{name}": value for name, value in scores.items()}
