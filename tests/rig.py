"""A tiny backbone with adapters of many kinds, and one call that runs it under a composition."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from graftwork.compose.parts import Parts
from graftwork.compose.plan import Planner
from graftwork.compose.tree import Composition, fusions
from graftwork.core.backbone import Backbone
from graftwork.core.fusion import FUSIONS, FusionConfig
from graftwork.core.kinds import read_config
from tests import tiny

ADAPTER_PLUS = "seq_bn[original_ln_after=False,residual_before_ln=False,scaling=channel,init_weights=houlsby]"
ZOO = {
    "seq": "seq_bn[reduction_factor=4]",
    "double": "double_seq_bn[reduction_factor=8]",
    "par": "par_bn[reduction_factor=8,scaling=1.5]",
    "plus": ADAPTER_PLUS,
    "partly": "seq_bn[reduction_factor=2,leave_out=[0,2],non_linearity=gelu]",
    "carry": "seq_bn[mh_adapter=True,residual_before_ln=False,ln_before=True]",
}

# every method that has a delta, at sub-layers, linears, their inputs and embeddings, some of them absent from layers
METHODS = {
    "seq": "seq_bn[reduction_factor=4]",
    "partly": "par_bn[reduction_factor=8,leave_out=[0]]",
    "compacter": "compacter[phm_dim=2,reduction_factor=8]",
    "lora": "lora[r=2,attn_matrices=['q','v','o'],intermediate_lora=True]",
    "dora": "dora[r=2,leave_out=[1]]",
    "vera": "vera[r=4]",
    "ia3": "ia3",
    "reft": "loreft[prefix_positions=2,suffix_positions=1]",
    "inv": "seq_bn_inv[reduction_factor=4]",
    "both": "lora[r=2]|par_bn[reduction_factor=8]",
    "unipelt": "unipelt[0.bottleneck_size=8,0.prefix_length=3]",
    "prefix": "prefix_tuning_flat[prefix_length=2]",
}


class Rig:
    """Backbone, parts and planner of one family; every parameter is random and large enough to matter."""

    def __init__(self, family: str, adapters: Mapping[str, Any] = ZOO, dtype: torch.dtype = torch.float32) -> None:
        self.backbone = Backbone(tiny.model(family).to(dtype))
        self.parts = Parts()
        self.planner = Planner(self.parts, self.backbone.normed)
        for name, config in adapters.items():
            self.parts.add_adapter(name, read_config(config), self.backbone)
        self.parts.eval()
        randomise(self.parts.parameters())

    def learn_fusions(self, trees: Iterable[Composition], config: FusionConfig = FUSIONS["dynamic"]) -> None:
        """Have exactly the fusions of these compositions, with random weights; those of earlier calls go."""
        for name in list(self.parts.fusion_records):
            self.parts.remove("fusions", name)
        for fuse in (fuse for tree in trees for fuse in fusions(tree)):
            if fuse.name not in self.parts.fusion_records:
                self.parts.add_fusion(fuse, config, self.backbone)
                for seed, module in enumerate(self.parts.modules_of("fusions", fuse.name).values()):
                    randomise(module.parameters(), seed)
        self.planner.forget()

    def run(self, setup: Any, inputs: Mapping[str, Tensor]) -> Tensor:
        """The last hidden state (B, T, D) under a composition, or a list of one per row."""
        batch = next(iter(inputs.values())).shape[0]
        plan = self.planner.plan(setup, "none", None, batch)
        with self.backbone.runtime.running(plan.route):
            output: Tensor = self.backbone.trunk(**plan.repeat(dict(inputs)))[0]
        return output


def randomise(parameters: Iterable[torch.nn.Parameter], seed: int = 5) -> None:
    """Random numbers in every parameter, the same ones for the same shapes and order."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters:
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32).to(parameter)
            parameter.copy_(0.2 * noise if parameter.dim() > 1 else parameter + 0.2 * noise)


def relative(found: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest expected number."""
    return float(((found - expected).abs().max() / expected.abs().max()).detach())
