"""How many parameters a base has: those that its layers are made of, however they are stored."""

from torch import nn


def counted(model: nn.Module) -> int:
    """The parameters of a model; of a weight that 4-bit quantisation packs two to a byte, those it stands for."""
    return sum(
        parameter.numel() if (packed := getattr(parameter, "quant_state", None)) is None else packed.shape.numel()
        for parameter in model.parameters()
    )
