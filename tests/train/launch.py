"""Two processes on this machine, as torchrun or accelerate starts them, that run `graftwork` commands one by one."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from tests.shared import ROOT

CHILD = """
import json, os, sys
import torch
torch.set_num_threads(1)
from graftwork.cli.main import run
rank = os.environ["RANK"]
for line in json.loads(sys.argv[1]):
    sys.stderr.write(f"\\n<<{rank} begins>>\\n")  # at once: print ends a line in a write of its own
    code = run([word.replace("{rank}", rank) for word in line])
    sys.stderr.write(f"\\n<<{rank} ends with {code}>>\\n")
"""


@dataclass(frozen=True)
class Ran:
    """What became of some commands: the exit code of each in every process, and all that was said."""

    codes: list[list[int]]
    said: str


# how to start two processes, each in words that a program follows; ports are free ones
TORCHRUN = "-m torch.distributed.run --nproc-per-node=2 --rdzv-backend=c10d --rdzv-endpoint=localhost:0 --no-python"
ACCELERATE = (
    "-m accelerate.commands.accelerate_cli launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no "
    "--dynamo_backend no --main_process_port 0 --no_python"
)


def together(commands: Sequence[Sequence[str]], by: str = TORCHRUN, seconds: float = 300) -> Ran:
    """Run commands in two processes; "{rank}" in a word is the number of the process."""
    start = [sys.executable, *by.split(), sys.executable, "-c", CHILD, json.dumps(commands)]
    path = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    found = subprocess.run(start, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=seconds)
    said = found.stdout + found.stderr
    assert found.returncode == 0, said
    by_rank = [re.findall(rf"<<{rank} ends with (\d+)>>", said) for rank in range(2)]
    return Ran([[int(code) for code in codes] for codes in by_rank], said)
