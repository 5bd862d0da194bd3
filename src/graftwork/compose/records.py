"""What is kept of a part beside its modules, where that is more than its configuration."""

from dataclasses import dataclass
from typing import cast

from graftwork.compose.grammar import parse
from graftwork.compose.tree import Fuse
from graftwork.core.fusion import FusionConfig


@dataclass(frozen=True)
class FusionRecord:
    """What is known of one fusion: its members as an expression, and its configuration."""

    composition: str
    config: FusionConfig

    @property
    def tree(self) -> Fuse:
        """The members as a block."""
        return cast(Fuse, parse(self.composition))
