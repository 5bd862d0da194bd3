"""`generate` for a bare trunk with a language-modelling head of ours: transformers' own loop, cache and beams.

transformers generates with a class that holds a trunk and a projection to the vocabulary. Such an object is made
without weights and given the trunk that is there and our head in the place of the projection; nothing is copied, and
the trunk's hooks, and so the route, work as ever.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING

from graftwork.core.backbone import Backbone
from graftwork.core.heads import Head, Inverse
from graftwork.errors import AdapterError

SPEAKING = ("causal_lm", "seq2seq_lm")


class Projection(nn.Module):
    """A head where transformers expects a linear layer: hidden states (n, T, D) -> logits (n, T, V).

    undo: what the surrounding class has multiplied the hidden states by.
    """

    def __init__(self, head: Head, undo: float, inverse: Inverse | None) -> None:
        super().__init__()
        self.head, self.undo, self.inverse = head, undo, inverse

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden (n, T, D) -> (n, T, V)."""
        logits: Tensor = self.head(hidden if self.undo == 1.0 else hidden / self.undo, inverse=self.inverse)
        return logits


def speaker(backbone: Backbone, head: Head, inverse: Inverse | None = None) -> Any:
    """A transformers model that generates with the backbone's trunk and a head.

    Raises AdapterError for a head that says no words, or a base for which transformers has no such class.
    """
    config, trunk = backbone.config, backbone.trunk
    pairs = MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING if config.is_encoder_decoder else MODEL_FOR_CAUSAL_LM_MAPPING
    wanted = "seq2seq_lm" if config.is_encoder_decoder else "causal_lm"
    if head.config.kind != wanted or type(config) not in pairs:
        raise AdapterError(
            f"generate needs a head of kind {wanted} on this base, and a base that transformers generates with; the "
            f"head is of kind {head.config.kind}, the base a {type(trunk).__name__}"
        )
    with torch.device("meta"):
        made = pairs[type(config)](config)
    prefix = made.base_model_prefix
    parts = {prefix: trunk} if hasattr(made, prefix) and prefix in dict(made.named_children()) else None
    for name, module in (parts or dict(trunk.named_children())).items():
        setattr(made, name, module)
    scaled = getattr(config.get_text_config(), "scale_decoder_outputs", False)
    undo = config.get_text_config().hidden_size ** -0.5 if scaled else 1.0
    made.set_output_embeddings(Projection(head, undo, inverse))
    for name, buffer in list(made.named_buffers(recurse=False)):
        setattr(
            made, name, torch.zeros_like(buffer, device=backbone.model.device)
        )  # a bias of zero, where there is one
    if left := [name for name, parameter in made.named_parameters() if parameter.is_meta]:
        raise AdapterError(f"{type(made).__name__} has weights of its own, {', '.join(left[:3])}; load the base as one")
    made.training = backbone.model.training
    return made
