"""The demo: the support desk of an online shop, from sentences to answers over HTTP, on a real pretrained encoder.

Trains four adapters and, for comparison, four heads on the frozen base; packages and registers them; trains a Fuse and
a Stack on top and averages two seeds; starts the server as a process of its own and sends one batch in which every row
has a composition of its own. Every step has a bar, and a missed bar is an error: GoalMissed, exit code 1.
"""

import json
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graftwork.errors import GoalMissed, UserError
from graftwork.registry.durable import named
from graftwork.registry.store import Registry
from graftwork.train.outcome import TrainResult
from graftwork.workflow import evaluate, open_engine, push, read_recipe, train

# task -> the test score (accuracy; entity F1 for address) that its adapter must reach
BARS = {"intent": 0.75, "sentiment": 0.80, "category": 0.75, "address": 0.48}
COMPOSED_BAR = 0.68
HEAD = {"training.method": "head", "training.learning_rate": 1e-2, "training.epochs": 5}  # a head alone is quick

ROWS: list[dict[str, str]] = [
    {"text": "Mera order kab aayega? It was promised for Monday.", "adapters": "intent"},
    {"text": "Superb service yaar, delivered before time!", "adapters": "sentiment"},
    {"text": "The pressure cooker lid does not lock properly", "adapters": "category"},
    {"text": "Please send it to Kavita Rao, 14 Lake View Road, Indiranagar, Bengaluru 560038", "adapters": "address"},
    {"text": "Paise kat gaye but the order shows failed", "adapters": "intent_fused"},
    {"text": "I want to cancel, found it cheaper elsewhere", "adapters": "Stack(category, intent_stacked)"},
    {"text": "Refund abhi tak nahi aaya", "adapters": "Average(intent@1, intent@2)", "head": "intent@1"},
    {"text": "Which adapter is this?", "adapters": "no-such-adapter"},
]


@dataclass(frozen=True)
class Line:
    """One line of the final table; `frozen` is the score of a head on the frozen base, None where there is none."""

    task: str
    score_name: str
    frozen: float | None
    adapter: float
    parameters: int
    bytes: int
    composition: str


def run(examples: Path, output: Path, say: Callable[[str], None]) -> list[Line]:
    """The whole story. Raises UserError where the examples are missing, GoalMissed where a step misses its bar."""
    recipes = {task: examples / f"{task}.yaml" for task in BARS}
    missing = [str(path) for path in recipes.values() if not path.is_file()]
    if missing:
        raise UserError(f"the demo's recipes are missing: {', '.join(missing)}; run it in a clone, or pass --examples")
    if output.exists() and any(output.iterdir()) and not (output / "registry").is_dir():
        raise UserError(f"{output} holds other files; choose another folder with --output")
    registry = Registry(output / "registry")
    with named(output):
        registry.root.mkdir(parents=True, exist_ok=True)  # from the first step on the folder is known as the demo's
    lines = [_task(task, recipe, registry, output, say) for task, recipe in recipes.items()]
    lines += _composed(recipes["intent"], registry, output, say)
    _check(lines)
    return lines


def _task(task: str, recipe: Path, registry: Registry, output: Path, say: Callable[[str], None]) -> Line:
    say(f"{task}: a head on the frozen base, then an adapter")
    frozen = _trained(recipe, registry, output / f"{task}-head", HEAD)
    adapter = _trained(recipe, registry, output / task, {})
    reference = push(adapter, registry, task)
    line = _line(task, adapter, _score(frozen), reference, registry)
    say(f"  frozen base {line.frozen:.3f}, adapter {line.adapter:.3f} ({adapter.main}), pushed as {reference}")
    return line


def _composed(recipe: Path, registry: Registry, output: Path, say: Callable[[str], None]) -> Iterator[Line]:
    say("composed: a Fuse over three adapters, a Stack on one, an Average of two seeds")
    members = {"adapter": {"composition": "fuse", "members": ["intent@1", "sentiment@1", "category@1"]}}
    below = {"adapter.composition": "stack", "adapter.language_adapter": "category@1"}
    for name, changes in (("intent_fused", members), ("intent_stacked", below)):
        result = _trained(recipe, registry, output / name, {"name": name, **changes})
        yield _line("intent", result, None, push(result, registry, name), registry, result.composition)
    again = _trained(recipe, registry, output / "intent-again", {"training.seed": 1})
    reference = push(again, registry, "intent")
    engine = open_engine("minilm", registry, too_long="truncate")
    average = evaluate(engine, "Average(intent@1, intent@2)", str(recipe.parent / "intent/test.jsonl"), head="intent@1")
    line = _line("intent", again, None, reference, registry)
    yield Line("intent", line.score_name, None, average.scores[average.main], line.parameters, line.bytes,
               average.composition)  # fmt: skip


def _trained(recipe: Path, registry: Registry, folder: Path, changes: Mapping[str, Any]) -> TrainResult:
    read = read_recipe(recipe, {"output": str(folder), **changes})
    return train(read, registry, overwrite=True, progress=False)


def _score(result: TrainResult) -> float:
    return result.scores["test"][result.main]


def _line(
    task: str, result: TrainResult, frozen: float | None, reference: str, registry: Registry, composition: str = ""
) -> Line:
    folder = registry.resolve(reference).path
    size = sum(file.stat().st_size for file in folder.iterdir())
    trained = result.parameters["trained"] - result.parameters["head"]
    return Line(task, result.main, frozen, _score(result), trained, size, composition or reference)


def _check(lines: list[Line]) -> None:
    missed = [
        f"{line.composition}: {line.score_name} {line.adapter:.3f}, the bar is {bar:.3f}"
        for line in lines
        for bar in [BARS[line.task] if line.frozen is not None else COMPOSED_BAR]
        if line.adapter < bar
    ]
    missed += [
        f"{line.composition}: {line.adapter:.3f} is below the frozen base's {line.frozen:.3f}"
        for line in lines
        if line.frozen is not None and line.adapter < line.frozen
    ]
    if missed:
        raise GoalMissed("the demo missed its bar: " + "; ".join(missed))


def ask(registry: Path, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Start the server as a process of its own, send ROWS as one request, and return its answers.

    Raises GoalMissed unless every row is answered, the row that names no package with `not_found`.
    """
    with _server(registry) as url:
        say(f"one request with {len(ROWS)} rows to {url}/v1/predict, every row with a composition of its own")
        body = json.dumps({"rows": ROWS}).encode()
        request = urllib.request.Request(f"{url}/v1/predict", body, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as response:
            answers: list[dict[str, Any]] = json.load(response)["answers"]
    codes = [answer.get("error", {}).get("code") for answer in answers]
    if codes != [None] * (len(ROWS) - 1) + ["not_found"]:
        raise GoalMissed(f"the server did not answer every row: {answers}")
    return answers


@contextmanager
def _server(registry: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "graftwork", "serve", "--model", "minilm", "--port", "0"]
    process = subprocess.Popen(
        [*command, "--registry", str(registry)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        yield _ready(process)
    finally:
        process.terminate()
        process.wait(timeout=30)


def _ready(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    said: list[str] = []
    for line in process.stdout:
        said.append(line)
        found = re.search(r"http://\S+", line)
        if found:
            return _warm(found.group(0).rstrip("/"), process)
    raise GoalMissed("the server did not start: " + "".join(said)[-2000:])


def _warm(url: str, process: subprocess.Popen[str]) -> str:
    for _ in range(240):
        if process.poll() is not None:
            raise GoalMissed(f"the server stopped while it was warming (exit code {process.returncode})")
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=5):
                return url
        except OSError:
            time.sleep(0.25)
    raise GoalMissed(f"the server at {url} was not ready within a minute")
