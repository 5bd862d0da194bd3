"""How good are adapters beside full fine-tuning and a head alone, on the two example recipes?

    python benchmarks/first_recipes.py [--recipe NAME ...] [--runs FOLDER] [--seed N ...] [--grid N]

Every method of every recipe tries the learning rates of GRID with the first seed; the best one on dev is run with the
other seeds too. Test scores take part in no choice. A run that is finished is read back, one that was stopped goes on,
so the script can be stopped and started at will. Writes benchmarks/results/first_recipes.md.
"""

import argparse
import statistics
from pathlib import Path

import torch

from graftwork import recipe as recipes
from graftwork.train.outcome import TrainResult
from graftwork.train.run import train

ROOT = Path(__file__).parent.parent
RECIPES = ("trec", "sst2")
GRID = {"adapter": (1e-3, 5e-4), "full": (5e-5, 1e-4), "head": (1e-3, 3e-3)}


def run(name: str, method: str, rate: float, seed: int, folder: Path) -> TrainResult:
    """One run of a recipe, or what it brought when it was run before."""
    changes = {"training.method": method, "training.learning_rate": rate, "training.seed": seed}
    settings = " ".join(f"--set {key}={value:g}" if key != "training.method" else f"--set {key}={value}"
                        for key, value in changes.items())  # fmt: skip
    made = recipes.override(
        recipes.load(ROOT / "examples" / f"{name}.yaml"),
        {**changes, "output": str(folder / f"{name}-{method}-{rate:g}-{seed}")},
    )
    result = train(made, resume=True, command=f"graftwork train examples/{name}.yaml {settings}")
    print(f"{result.command}: dev {score(result, 'dev')} test {score(result, 'test')}", flush=True)
    return result


def score(result: TrainResult, split: str) -> str:
    return f"{100 * result.scores[split][result.main]:.2f}"


def spread(results: list[TrainResult], split: str) -> str:
    """Mean and standard deviation over seeds, in percent."""
    values = [100 * result.scores[split][result.main] for result in results]
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{deviation}"


def page(tried: list[TrainResult], chosen: dict[tuple[str, str, float], list[TrainResult]], seeds: list[int]) -> str:
    """The results as Markdown."""
    first = tried[0]
    rates = (
        f"the best on dev of those tried with seed {seeds[0]}"
        if len({result.command for result in tried}) > len(chosen)
        else "one for each method, untuned"
    )
    lines = [
        "# The two example recipes: adapter, full fine-tuning, frozen base with a trained head",
        "",
        "Base: MiniLM (6 layers, 384 wide), embedded by the `[demo]` extra. Accuracy in percent; the learning rate is",
        f"{rates}; test scores took part in no choice. "
        + (f"Mean and standard deviation over seeds {', '.join(map(str, seeds))}." if len(seeds) > 1 else "One seed."),
        "",
        "| recipe | method | learning rate | dev | test | trained parameters | package |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for (name, method, rate), results in chosen.items():
        made, trained = results[0], results[0].parameters["trained"]
        size = f"{made.size / 1e6:.2f} MB" + (" and the whole model" if method == "full" else "")
        lines.append(
            f"| {name} | {method} | {rate:g} | {spread(results, 'dev')} | {spread(results, 'test')} | {trained:,} "
            f"({trained / made.parameters['base']:.1%} of the base) | {size} |"
        )
    lines += ["", "## Every run", "", "| command | dev | test | best epoch |", "|---|---|---|---|"]
    every = {(result.command, result.seed): result for result in [*tried, *(r for rs in chosen.values() for r in rs)]}
    for result in every.values():
        epochs = f"{result.best_epoch:g} of {result.epochs:g}"
        lines.append(f"| `{result.command}` | {score(result, 'dev')} | {score(result, 'test')} | {epochs} |")
    lines += [
        "",
        f"Machine: {first.machine}. "
        + ", ".join(f"{library} {version}" for library, version in sorted(first.versions.items()))
        + ". Training time is not reported. Written by `benchmarks/first_recipes.py`.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what is missing and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", choices=RECIPES, nargs="+", default=RECIPES, help="the page needs all of them")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "first_recipes", help="where the runs are kept")
    parser.add_argument("--seed", type=int, nargs="+", default=[0], help="seeds; the first one picks the learning rate")
    parser.add_argument("--grid", type=int, default=2, help="how many learning rates of GRID to try")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    tried: list[TrainResult] = []
    chosen: dict[tuple[str, str, float], list[TrainResult]] = {}
    for name in asked.recipe:
        for method, grid in GRID.items():
            found = {rate: run(name, method, rate, asked.seed[0], asked.runs) for rate in grid[: asked.grid]}
            tried += found.values()
            best = max(found, key=lambda rate: found[rate].scores["dev"][found[rate].main])
            others = [run(name, method, best, seed, asked.runs) for seed in asked.seed[1:]]
            chosen[name, method, best] = [found[best], *others]
    if set(asked.recipe) == {*RECIPES}:
        (ROOT / "benchmarks" / "results" / "first_recipes.md").write_text(page(tried, chosen, asked.seed), "utf8")


if __name__ == "__main__":
    main()
