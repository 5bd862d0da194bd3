"""Screening the members of a fusion before it is trained: what each is worth alone on the target's dev rows, beside the
frozen base alone.

    probe      a new linear head on the frozen member, fitted to training rows: which members bring something
    own head   the head that the member's package has, where it answers the same kind of task with the same labels

The probe is a logistic regression (a ridge regression for numbers) by scikit-learn on what the task's head would read,
standardised. Of all ways to train a head it is the cheapest, one forward a row and a convex problem without a learning
rate, and the only one that favours no member by its luck with a seed. It is the same for the base and for every member,
so it alone says whether a member hurts: whether what it makes of a text is worth less than what the base does. At most
ROWS training rows are read (TOKENS words in tagging), drawn by the seed. Nothing of the job is touched.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy
import torch
from torch import nn

from graftwork.build import add_task_head
from graftwork.compose.tree import leaves
from graftwork.core.accelerator import to_accelerator
from graftwork.evaluate import evaluate
from graftwork.model import AdapterModel
from graftwork.tasks.bootstrap import difference
from graftwork.tasks.encoded import IGNORED
from graftwork.tasks.scorer import Scorer
from graftwork.train.job import Job
from graftwork.train.setup import answers

ROWS, TOKENS = 2000, 10_000
BASE = "none"  # as a composition writes it
_HEAD = "probe"
Numbers = numpy.ndarray[Any, Any]
Line = tuple[Numbers, Numbers]  # weights (L, D) and biases (L,)


def screen(job: Job) -> list[dict[str, Any]]:
    """A row for the base and for every member of a job's fusion: {"member", "probe", "own_head"}, scores or None.

    Of a member also "difference", "low" and "high": its probe less the base's, with a 95 % interval over dev rows; and
    "hurts". Of kinds without a probe only own heads are scored; empty where there is nothing at all to say.
    """
    model = AdapterModel(job.model.backbone)
    to_accelerator(model)
    training = job.model.training
    try:
        with torch.random.fork_rng():  # what is made here draws nothing from the run's numbers
            found = [*_screened(job, model)]
    finally:
        job.model.train(training)
    return found if any(row["probe"] is not None or row["own_head"] is not None for row in found) else []


def notes(screening: Sequence[Mapping[str, Any]], main: str) -> Iterator[str]:
    """What screening found, in sentences; which members hurt."""
    if not screening:
        return
    said = [f"{'the base alone' if row['member'] == BASE else row['member']} {_scores(row)}" for row in screening]
    yield f"screening, dev {main} of each member before the fusion: {', '.join(said)}"
    for row in screening[1:]:
        if row["hurts"]:
            yield (
                f"member {row['member']} hurts: with a new linear head it scores {row['probe']:.4f}, below the base "
                f"alone, {screening[0]['probe']:.4f} (by {row['difference']:.4f}, 95 % interval {row['low']:.4f} to "
                f"{row['high']:.4f}{', so it may be chance' if row['high'] >= 0 else ''}); try the fusion without it"
            )


def below_best(screening: Sequence[Mapping[str, Any]], score: float, main: str, name: str) -> Iterator[str]:
    """That a fusion is worth less than its best member alone, where it is."""
    alone = [(max(_known(row)), row["member"]) for row in screening if row["member"] != BASE and _known(row)]
    if alone and score < max(alone)[0]:
        best, member = max(alone)
        yield (
            f"fusion {name} is below its best single member: dev {main} {score:.4f}, and {member} alone {best:.4f} "
            "(screening); one adapter with a new head would do better here, for less"
        )


def _screened(job: Job, model: AdapterModel) -> Iterator[dict[str, Any]]:
    fit, base = FITS.get(job.task.kind), None
    for name, package in [(BASE, None), *zip(leaves(job.setup.composition), job.setup.packages, strict=True)]:
        fits = package is not None and package.manifest.head is not None and answers(package, job.task)
        if package is not None:
            model.install(package, name, with_head=fits)
        adapters = None if package is None else name
        probe = None if fit is None else _probe(job, model, adapters, fit)
        row = {
            "member": name,
            "probe": None if probe is None else probe.once()[job.task.main_score],
            "own_head": _score(job, model, name, name).once()[job.task.main_score] if fits else None,
        }
        base = probe if package is None else base
        yield row if package is None else row | _beside(base, probe, job.task.main_score)


def _beside(base: Scorer | None, member: Scorer | None, main: str) -> dict[str, Any]:
    if base is None or member is None:
        return {"difference": None, "low": None, "high": None, "hurts": False}
    found = difference([[(base, member)]], main)
    return {"difference": found.value, "low": found.low, "high": found.high, "hurts": found.value < 0}


def _probe(job: Job, model: AdapterModel, adapters: str | None, fit: "Fit") -> Scorer:
    """The scores of a linear head on dev rows, fitted to what it reads of training rows."""
    if _HEAD in model.parts.head_configs:
        model.delete_head(_HEAD)
    add_task_head(model, job.task, _HEAD, job.recipe.task.pooling)
    head: Any = model.parts.head(_HEAD)
    head.layers = nn.Sequential()  # it answers with what it reads: (n, D), or (n, T, D)
    read, wanted = _read(job, model, adapters)
    mean, spread = read.mean(0), read.std(0)
    spread = numpy.where(spread > 0, spread, 1.0)
    weights, biases = fit((read - mean) / spread, wanted, len(job.task.labels) or job.task.outputs)
    weights = weights / spread  # (L, D)
    line = nn.Linear(weights.shape[1], weights.shape[0])
    with torch.no_grad():
        line.weight.copy_(torch.from_numpy(weights))
        line.bias.copy_(torch.from_numpy(biases - weights @ mean))
    head.layers = nn.Sequential(line.to(model.device))
    return _score(job, model, adapters, _HEAD)


def _score(job: Job, model: AdapterModel, adapters: str | None, head: str) -> Scorer:
    size = job.recipe.training.eval_batch_size
    _, found = evaluate(model, job.task, job.encoder, job.dev, adapters=adapters, head=head, batch_size=size)
    return job.task.scorer(found, job.dev)


def _read(job: Job, model: AdapterModel, adapters: str | None) -> tuple[Numbers, Numbers]:
    """What the head reads of training rows, (N, D) in float64, and what it should answer, (N,) or (N, L)."""
    rows, size = job.sets["train"], job.recipe.training.eval_batch_size
    generator = torch.Generator().manual_seed(job.recipe.training.seed)
    chosen = torch.randperm(len(rows), generator=generator)[:ROWS].tolist()
    lengths = [one.length for one in job.encoded["train"]]
    chosen = sorted(chosen, key=lambda row: lengths[row])
    read, wanted = [], []
    model.eval()
    with torch.no_grad():
        for start in range(0, len(chosen), size):
            batch = {
                key: value.to(model.device) for key, value in rows.__getitems__(chosen[start : start + size]).items()
            }
            labels = batch.pop("labels")
            (group,) = model(**batch, adapters=adapters, head=_HEAD).groups
            states = group.text_logits.double()
            if not job.task.pools:
                states, labels = states[labels != IGNORED], labels[labels != IGNORED]
            read.append(states.cpu())
            wanted.append(labels.cpu())
    found, right = torch.cat(read), torch.cat(wanted)
    if not job.task.pools:
        kept = torch.randperm(len(found), generator=generator)[:TOKENS]
        found, right = found[kept], right[kept]
    return found.numpy(), right.numpy()


Fit = Callable[[Numbers, Numbers, int], Line]  # standardised (N, D), answers (N,) or (N, L), L -> a linear head


def _classes(read: Numbers, wanted: Numbers, outputs: int) -> Line:
    """Multinomial logistic regression; a label that no row has is never answered."""
    from sklearn.linear_model import LogisticRegression

    weights, biases = numpy.zeros((outputs, read.shape[1])), numpy.full(outputs, -1e4)
    seen = numpy.unique(wanted)
    biases[seen] = 0.0
    if len(seen) > 1:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # where it has not quite converged after so many steps it is close enough
            found = LogisticRegression(max_iter=200).fit(read, wanted)
        places = seen if len(seen) > 2 else seen[1:]  # of two classes it has the log odds of the second
        weights[places], biases[places] = found.coef_, found.intercept_
    return weights, biases


def _labels(read: Numbers, wanted: Numbers, outputs: int) -> Line:
    """A logistic regression for each label, yes against no."""
    lines = [_classes(read, wanted[:, label].astype(numpy.int64), 2) for label in range(outputs)]
    return tuple(numpy.stack([one[part][1] - one[part][0] for one in lines]) for part in (0, 1))  # type: ignore[return-value]


def _number(read: Numbers, wanted: Numbers, outputs: int) -> Line:
    """Ridge regression."""
    from sklearn.linear_model import Ridge

    found = Ridge(alpha=1.0).fit(read, wanted)
    return found.coef_[None, :], numpy.array([found.intercept_])


FITS: dict[str, Fit] = {
    "classification": _classes,
    "pair": _classes,
    "image_classification": _classes,
    "tagging": _classes,
    "multilabel": _labels,
    "regression": _number,
}


def _known(row: Mapping[str, Any]) -> list[float]:
    return [row[key] for key in ("probe", "own_head") if row[key] is not None]


def _scores(row: Mapping[str, Any]) -> str:
    own = [] if row["own_head"] is None else [f"{row['own_head']:.4f} with its own head"]
    probe = [] if row["probe"] is None else [f"{row['probe']:.4f}"]
    return " and ".join([*probe, *own]) or "not scored"
