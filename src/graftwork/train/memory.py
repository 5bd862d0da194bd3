"""The most memory that this process has held: resident on the machine, and on its accelerator.

Resident is what the kernel calls VmHWM, everything that was in RAM at once: libraries, data, base and training alike.
It belongs to the process, so a run that shares its process with others tells theirs too.
"""

import resource
import sys
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")


def peak() -> dict[str, int]:
    """{"resident": bytes, "device": bytes}; the second is what torch had allocated on a CUDA device, else 0."""
    device = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return {"resident": _resident(), "device": int(device)}


def _resident() -> int:
    # getrusage counts what the process was before it became this program: a forked parent's peak
    if _STATUS.is_file():
        lines = dict(line.partition(":")[::2] for line in _STATUS.read_text().splitlines())
        if "VmHWM" in lines:
            return 1024 * int(lines["VmHWM"].split()[0])
    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found if sys.platform == "darwin" else 1024 * found
