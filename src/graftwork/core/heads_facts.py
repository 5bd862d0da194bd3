"""What a fresh head takes over from its base: pooling, dropout, widths and vocabulary. Builds nothing."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from graftwork.core.backbone import Backbone
from graftwork.core.heads import HeadConfig

_POOLED = ("albert", "beit")  # model types whose heads read the pooler unless told otherwise


@dataclass(frozen=True)
class HeadFacts:
    """What heads take over from a base: how it stands for a row, its dropout, and the shape of its vocabulary."""

    pooling: str
    dropout: float
    width: int
    words: int
    embedding: int
    tied: bool
    norm_eps: float
    scale: float
    pooled: bool

    def pooled_by(self, pooling: str | None, use_pooler: bool | None) -> str:
        """The pooling of a head: as asked, else the pooler where asked for or usual, else the base's habit."""
        if pooling is not None:
            return pooling
        return "pooler" if (self.pooled if use_pooler is None else use_pooler) else self.pooling


@dataclass(frozen=True)
class Asked:
    """A head to add, and whether it may replace one of its name."""

    config: HeadConfig
    overwrite_ok: bool


def facts_of(backbone: Backbone) -> HeadFacts:
    """What the heads of a base follow."""
    config = backbone.config.get_text_config()
    embedding = embedding_of(backbone.model)
    width = width_of(backbone.config)
    return HeadFacts(
        pooling="last" if backbone.family.causal else "first",
        dropout=float(getattr(config, "hidden_dropout_prob", None) or getattr(config, "dropout", None) or 0.0),
        width=width,
        words=int(getattr(config, "vocab_size", 0) or 0),
        embedding=width if embedding is None else embedding.shape[-1],
        tied=bool(getattr(config, "tie_word_embeddings", True)) and embedding is not None,
        norm_eps=float(getattr(config, "layer_norm_eps", None) or 1e-12),
        scale=width**-0.5 if getattr(config, "scale_decoder_outputs", False) else 1.0,
        pooled=config.model_type in _POOLED,
    )


def width_of(config: Any) -> int:
    """The width of a trunk's last hidden state; OPT-350m leaves its layers at another one."""
    text = config.get_text_config()
    return int(getattr(text, "word_embed_proj_dim", None) or text.hidden_size)


def embedding_of(model: nn.Module) -> Tensor | None:
    """The table of a model's vocabulary (V, D), or None where it has none: images, sounds, several towers."""
    try:
        weight = getattr(model.get_input_embeddings(), "weight", None)  # type: ignore[operator]
    except NotImplementedError:
        return None
    return weight if isinstance(weight, Tensor) and weight.dim() == 2 else None
