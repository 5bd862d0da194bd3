"""Prompt tuning: trained embeddings among those of the text (Lester et al. 2021, arXiv 2104.08691).

    [p₁ … p_P; e₁ … e_T]           or, behind the first token ("prefix_after_bos"),  [e₁; p₁ … p_P; e₂ … e_T]

P·D parameters for the whole model. The tokens are drawn at birth from U(-s, s), s = random_uniform_scale, or begin as
the embeddings of a text (`begin_as`): who has a tokenizer gives the rows, this file knows none.

A prompt lengthens the text instead of changing a stream, so it is outside the arithmetic of changes: it stands beside
any other method, several may stand one after another, and they have no sum and no mean.
Knows nothing of layers, names, files, tokenizers or compositions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from graftwork.core.adapter import NO_GROUND, Ground
from graftwork.core.initial import blank, generator_of
from graftwork.core.linear import is_rank
from graftwork.core.options import goes_to, is_number, place_problems, seed_problems, settle_places
from graftwork.core.site import Site
from graftwork.errors import AdapterError

INITS = ("random_uniform", "from_string")
COMBINES = ("prefix", "prefix_after_bos")


@dataclass(frozen=True, kw_only=True)
class PromptTuningConfig:
    """Every choice of prompt tuning; defaults and names are those of AdapterHub's PromptTuningConfig.

    prompt_init: random_uniform · from_string: the embeddings of prompt_init_text, repeated or cut to prompt_length.
    Raises AdapterError for a value out of range.
    """

    prompt_length: int = 10
    prompt_init: str = "random_uniform"
    prompt_init_text: str | None = None
    random_uniform_scale: float = 0.5
    combine: str = "prefix"
    init_weights_seed: int | None = None
    leave_out: tuple[int, ...] = ()
    stacks: tuple[str, ...] = ()

    kind: ClassVar[str] = "prompt_tuning"
    where: ClassVar[str] = "embeddings that may get longer (prompt)"

    def __post_init__(self) -> None:
        settle_places(self)
        scale, text = self.random_uniform_scale, self.prompt_init_text
        checks = (
            (is_rank(self.prompt_length), f"prompt_length {self.prompt_length!r} must be a whole number from 1"),
            (self.prompt_init in INITS, f"prompt_init {self.prompt_init!r} is not one of {', '.join(INITS)}"),
            (text is None or isinstance(text, str), f"prompt_init_text {text!r} must be a text"),
            (self.prompt_init != "from_string" or bool(text), "prompt_init 'from_string' needs a prompt_init_text"),
            (is_number(scale) and scale >= 0, f"random_uniform_scale {scale!r} must be a number from 0"),
            (self.combine in COMBINES, f"combine {self.combine!r} is not one of {', '.join(COMBINES)}"),
        )
        problems = [problem for fine, problem in checks if not fine]
        problems += seed_problems(self.init_weights_seed) + place_problems(self)
        if problems:
            raise AdapterError("prompt_tuning adapter: " + "; ".join(problems))

    def adapts(self, site: Site) -> bool:
        """Whether this configuration means a site, which must be embeddings that may get longer."""
        return site.place == "prompt" and goes_to(self, site)

    def share(self, sites: Sequence[Site]) -> nn.Module | None:
        """Nothing: there is one site."""
        return None

    def build(self, site: Site, ground: Ground = NO_GROUND) -> "Prompt | None":
        """The prompt for a site, freshly initialised in float32, or None where this configuration has none."""
        return Prompt(self, site) if self.adapts(site) else None


class Prompt(nn.Module):
    """P trained tokens, `embedding` (P, D)."""

    def __init__(self, config: PromptTuningConfig, site: Site) -> None:
        super().__init__()
        self.length = config.prompt_length
        self.skip = 1 if config.combine == "prefix_after_bos" else 0  # how many tokens stay in front
        self.embedding = blank(config.prompt_length, site.width)
        scale = config.random_uniform_scale
        nn.init.uniform_(self.embedding, -scale, scale, generator=generator_of(config.init_weights_seed, site.index))

    def begin_as(self, rows: Tensor) -> None:
        """Begin as the embeddings of a text (n, D), repeated or cut to the prompt's length. Raises AdapterError."""
        if rows.dim() != 2 or rows.shape[1] != self.embedding.shape[1] or not len(rows):
            raise AdapterError(
                f"prompt_tuning adapter: rows of shape {tuple(rows.shape)} are no embeddings of a text; needed is "
                f"(n, {self.embedding.shape[1]}) with at least one row"
            )
        order = torch.arange(self.length, device=rows.device) % len(rows)
        with torch.no_grad():
            self.embedding.copy_(rows[order])

    def put(self, embeddings: Tensor) -> Tensor:
        """Embeddings with the prompt among them, (B, T, D) -> (B, P + T, D)."""
        prompt = self.embedding.to(embeddings.dtype).expand(embeddings.shape[0], -1, -1)
        return torch.cat((embeddings[:, : self.skip], prompt, embeddings[:, self.skip :]), dim=1)

    def lengthened(self, row: Tensor, fill: int) -> Tensor:
        """A mask or labels (B, T) for the longer rows, (B, P + T), with `fill` where the prompt is."""
        prompt = row.new_full((row.shape[0], self.length), fill)
        return torch.cat((row[:, : self.skip], prompt, row[:, self.skip :]), dim=1)
