"""Where work runs: on the first accelerator that the process sees, if there is one. $CUDA_VISIBLE_DEVICES picks it."""

import torch
from torch import nn


def to_accelerator(module: nn.Module) -> None:
    """Move a module to the accelerator of this process; nothing where the machine has none."""
    device = torch.accelerator.current_accelerator(check_available=True)
    if device is not None:
        module.to(device)


def finish(device: torch.device) -> None:
    """Wait until a device has done all that it was asked for; a CPU has."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
