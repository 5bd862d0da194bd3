"""What is kept of a part beside its modules, where that is more than its configuration."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

from graftwork.compose.grammar import parse
from graftwork.compose.tree import Fuse
from graftwork.core.fusion import FusionConfig


@dataclass(frozen=True)
class FusionRecord:
    """What is known of one fusion: its members as an expression, its configuration, and for sites where it was pruned
    which members are left: site name -> their places in the composition, in order."""

    composition: str
    config: FusionConfig
    kept: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def tree(self) -> Fuse:
        """The members as a block."""
        return cast(Fuse, parse(self.composition))
