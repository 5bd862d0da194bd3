"""The `graftwork` command: a table of commands, loaded only when one is called.

Each command parses, makes one call, prints. Exit codes: 0 done, 1 the work failed, 2 the request was wrong. A mistake
of the user ends in one message, never in a traceback. `graftwork --help` needs neither torch nor transformers.
"""

import logging
import os
import sys
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from graftwork.errors import GraftworkError, UserError, in_a_line

# command -> file that holds it, and its line in `graftwork --help`
COMMANDS: dict[str, tuple[str, str]] = {
    "train": ("graftwork.cli.train", "Train an adapter from a recipe and write it as a package."),
    "compare": ("graftwork.cli.compare", "Train one recipe by several methods, and show scores, sizes and costs."),
    "evaluate": ("graftwork.cli.evaluate", "Score packages and compositions on a file of rows, with intervals."),
    "attention": ("graftwork.cli.attention", "Say what a fusion attends to, by layer, member and label."),
    "prune": ("graftwork.cli.prune", "Keep the members that a fusion attends to most, layer by layer."),
    "predict": ("graftwork.cli.predict", "Answer rows from a file, an argument or standard input."),
    "serve": ("graftwork.cli.serve", "Serve every package of the registry over HTTP."),
    "registry": ("graftwork.cli.registry", "List, show, push, pull, import, export, alias and verify packages."),
    "show": ("graftwork.cli.show", "Say what a model, method, package or composition is."),
    "demo": ("graftwork.cli.demo", "The whole story on a real encoder, in a few minutes."),
}

SMALLER = (
    "the memory is used up: take smaller batches (training.batch_size with training.gradient_accumulation, or "
    "training.gradient_checkpointing), shorter texts (training.max_seq_length), or train one recipe at a time; a "
    "training goes on from its last checkpoint with --resume"
)


class Late(TyperGroup):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The names, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> TyperCommand | TyperGroup | None:
        """Load one command; None for a name that is not in the table."""
        if cmd_name not in COMMANDS:
            return None
        command: Any = get_command(import_module(COMMANDS[cmd_name][0]).app)
        command.name = cmd_name
        return command  # type: ignore[no-any-return]

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The lines of the table, without importing what they name."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


app = typer.Typer(
    cls=Late,
    name="graftwork",
    help="Train, compose, package and serve adapters on one frozen transformer.\n\nBegin with: graftwork demo",
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.callback()
def root() -> None:
    """Train, compose, package and serve adapters on one frozen transformer.

    Begin with: graftwork demo
    """


def main(arguments: list[str] | None = None) -> None:
    """Run one command and exit with its code."""
    # where PEFT imports bitsandbytes, it says that a kernel could be faster, to people who asked for no packed base
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: list[str]) -> int:
    """Run one command: 0 done, 1 failed, 2 the request was wrong."""
    try:
        code = app(args=arguments, prog_name="graftwork", standalone_mode=False)
    except GraftworkError as error:
        if not error.said_elsewhere:
            print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    except typer.Exit as stop:
        return stop.exit_code
    except (typer.Abort, KeyboardInterrupt):
        print("stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe went away (| head): nothing is wrong
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if _out_of_memory(error):
            print(f"error: {in_a_line(error)}\n{SMALLER}", file=sys.stderr)
            return 1
        return _usage(error)
    return code if isinstance(code, int) else 0


def _out_of_memory(error: Exception) -> bool:
    """Whether the machine or its accelerator refused memory: torch's own error, known by name since no torch is loaded
    here, or that of its allocator on the CPU, which is a bare RuntimeError."""
    return (
        isinstance(error, MemoryError) or "OutOfMemoryError" in type(error).__name__ or "allocate memory" in str(error)
    )


def _usage(error: Exception) -> int:
    """Print an error of usage (unknown option, missing argument) and return 2; raise anything else."""
    show = getattr(error, "show", None)
    if show is None:
        raise error
    show()
    return int(getattr(error, "exit_code", 2))
