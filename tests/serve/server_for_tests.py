"""A server in a process of its own: python -m tests.serve.server_for_tests <folder of a World> <seconds a forward>."""

import sys
import time
from pathlib import Path

import torch

from graftwork.serve.engine import Engine
from graftwork.serve.server import serve
from tests.serve.world import World


def slow_engine() -> Engine:
    """An engine whose forwards take a while, so that a signal can meet one."""
    torch.set_num_threads(2)
    engine = World(Path(sys.argv[1])).engine()
    engine.model.base.register_forward_pre_hook(lambda *_: time.sleep(float(sys.argv[2])))
    return engine


if __name__ == "__main__":
    serve(slow_engine, port=0)
    print("ended in order")
