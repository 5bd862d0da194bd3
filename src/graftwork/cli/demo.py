"""`graftwork demo`: the whole story on a real encoder."""

from dataclasses import asdict
from pathlib import Path
from time import monotonic
from typing import Annotated, Any

import typer

from graftwork.cli.options import AsJson
from graftwork.cli.printing import emit, table
from graftwork.demo import ROWS, ask, run

app = typer.Typer(add_completion=False, rich_markup_mode=None)

_NEXT = """
What to try next:
  graftwork registry list --registry {output}/registry
  graftwork show 'Stack(category, intent_stacked)' --registry {output}/registry
  graftwork predict intent --text "my parcel is late again" --registry {output}/registry
  graftwork serve --registry {output}/registry          then open http://127.0.0.1:8000/docs
  examples/quickstart_sentiment.py                      the same in Python
"""


@app.command()
def command(
    examples: Annotated[Path, typer.Option(help="folder of the demo's recipes")] = Path("examples/support_desk"),
    output: Annotated[Path, typer.Option(help="folder that the demo writes to")] = Path("demo-output"),
    as_json: AsJson = False,
) -> None:
    """Train, package, compose and serve adapters for a support desk; exit code 1 if any step misses its bar.

    Example: graftwork demo --output demo-output
    """
    started = monotonic()

    def say(line: str) -> None:
        typer.echo(f"[{monotonic() - started:5.0f} s] {line}", err=as_json)

    lines = run(examples, output, say)
    answers = ask(output / "registry", say)
    if as_json:
        emit({"lines": [asdict(line) for line in lines], "answers": answers, "seconds": monotonic() - started})
        return
    typer.echo()
    table([_row(asdict(line)) for line in lines], list(_row(asdict(lines[0]))))
    typer.echo()
    table([{**row, "answer": _short(answer)} for row, answer in zip(ROWS, answers, strict=True)],
          ["text", "adapters", "answer"])  # fmt: skip
    typer.echo(_NEXT.format(output=output))


def _row(line: dict[str, Any]) -> dict[str, Any]:
    return {
        "task": line["task"],
        "score": line["score_name"],
        "frozen base": line["frozen"],
        "adapter": line["adapter"],
        "parameters": line["parameters"],
        "bytes on disk": line["bytes"],
        "package or composition": line["composition"],
    }


def _short(answer: dict[str, Any]) -> str:
    if "error" in answer:
        return f"{answer['error']['code']}: the row is refused, not answered by the base"
    if "label" in answer:
        return f"{answer['label']} ({answer['score']:.2f})"
    return ", ".join(f"{entity['type']} {entity['text']!r}" for entity in answer.get("entities", [])) or str(answer)
