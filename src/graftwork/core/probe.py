"""A route that changes some sites by given functions: what certification and its tests send through a model."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from graftwork.core.hooks import Runtime
from graftwork.core.locate import Located
from graftwork.core.site import Delta, Positions, Reading, Site


class Sited(Protocol):
    """A model with sites: what of a Backbone a probe needs."""

    runtime: Runtime
    trunk: nn.Module

    @property
    def located(self) -> tuple[Located, ...]:
        """The sites with their modules."""
        ...

    def layer_of(self, site: Site) -> nn.Module:
        """The layer that a site is in."""
        ...

    def open(self, site: Site) -> None:
        """Place the hooks of a site."""
        ...

    def close(self) -> None:
        """Take the hooks of every sub-layer off again."""
        ...


class Probe:
    """Calls the function of a site with what is read there; other sites stay as they are."""

    def __init__(
        self,
        changes: Mapping[int, Callable[[Reading], Delta | None]],
        prefixes: Mapping[int, Callable[[Reading], Positions]] | None = None,
    ) -> None:
        self.changes = changes
        self.prefixes = prefixes or {}

    def delta(self, site: int, reading: Reading) -> Delta | None:
        """The change of the site's function."""
        change = self.changes.get(site)
        return None if change is None else change(reading)

    def positions(self, site: int, reading: Reading) -> Positions | None:
        """The positions of the site's function."""
        prefix = self.prefixes.get(site)
        return None if prefix is None else prefix(reading)

    def prompted(self, site: int, embeddings: Tensor) -> Tensor | None:
        """Nothing."""
        return None

    def lengthened(self, row: Tensor, fill: int, pad: int) -> Tensor:
        """The same."""
        return row

    def inverse(self, site: int, hidden: Tensor) -> Tensor | None:
        """Nothing."""
        return None


def open_sublayers(backbone: Sited) -> None:
    """Place every hook of every sub-layer: a probe is called where hooks are."""
    for located in backbone.located:
        if located.row is not None:
            backbone.open(located.site)


def run(backbone: Sited, inputs: Mapping[str, Any], probe: Probe | None = None) -> Tensor:
    """The trunk's first output under a probe, without gradients."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]), backbone.runtime.running(probe):
        torch.manual_seed(0)  # a model that draws numbers, to mask patches say, draws the same ones in every run
        output = backbone.trunk(**inputs)
    return output[0]  # type: ignore[no-any-return]
