"""Several processes on this machine, as torchrun starts them, that run `graftwork` commands one after another."""

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


def together(commands: Sequence[Sequence[str]], count: int = 2, seconds: float = 300) -> Ran:
    """Run commands in `count` processes; "{rank}" in a word is the number of the process."""
    start = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={count}", "--rdzv-backend=c10d"]
    start += ["--rdzv-endpoint=localhost:0", "--no-python", sys.executable, "-c", CHILD, json.dumps(commands)]
    path = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    found = subprocess.run(start, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=seconds)
    said = found.stdout + found.stderr
    assert found.returncode == 0, said
    by_rank = [re.findall(rf"<<{rank} ends with (\d+)>>", said) for rank in range(count)]
    return Ran([[int(code) for code in codes] for codes in by_rank], said)
