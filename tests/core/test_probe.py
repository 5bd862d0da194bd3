"""The route of certification: it changes what it is told to change, and nothing else."""

import torch

from graftwork.core.probe import Probe, run
from graftwork.core.site import Delta
from tests import tiny
from tests.hooked import hooked


def test_a_probe_changes_its_sites_and_no_others() -> None:
    backbone, inputs = hooked(tiny.model("llama")), tiny.inputs("llama")
    last = backbone.last
    backbone.trunk.norm = torch.nn.Identity()
    plain = run(backbone, inputs)
    assert torch.equal(run(backbone, inputs, Probe({})), plain)
    assert torch.equal(run(backbone, inputs, Probe({last.index: lambda reading: None})), plain)
    changed = run(backbone, inputs, Probe({last.index: lambda reading: Delta(torch.ones_like(reading.output))}))
    torch.testing.assert_close(changed, plain + 1)
