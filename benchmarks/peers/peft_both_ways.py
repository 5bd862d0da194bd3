"""LoRA, DoRA, (IA)³ and VeRA of the real PEFT, read here and written back: three models, one output.

    python benchmarks/peers/peft_both_ways.py BASES               in an environment with graftwork and peft

BASES holds small transformers models, one a folder, each with `reference/inputs.safetensors`. Prints for every case the
effect of the adapter, and how far our model and PEFT's own, loaded from what we wrote, are from PEFT's output.
"""

import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import IA3Config, LoraConfig, PeftModel, VeraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModel

from graftwork.build import without_bars
from graftwork.importing import facts_of, packages, read
from graftwork.model import AdapterModel
from graftwork.registry.foreign.peft_write import write_peft

TOLERANCE = 3e-4  # other scales go into B, which adds in another order
MODULES = {
    "bert": ["query", "value"],
    "roberta": ["query", "key", "output.dense"],
    "distilbert": ["q_lin", "v_lin"],
    "deberta-v2": ["query_proj", "value_proj"],
    "albert": ["query", "value"],
    "modernbert": ["Wqkv", "Wo"],
    "gpt2": ["c_attn", "c_fc"],
    "llama": ["q_proj", "v_proj", "down_proj", "gate_proj"],
    "t5": ["q", "v", "wo"],
    "bart": ["q_proj", "v_proj", "fc1"],
    "vit": ["q_proj", "v_proj"],
}


def cases() -> Iterator[tuple[str, str, Any]]:
    """Family, what is tried, and PEFT's configuration."""
    for family, modules in MODULES.items():
        yield family, "lora", LoraConfig(r=4, lora_alpha=10, target_modules=modules)
    for family in ("bert", "llama", "gpt2"):
        first, second = MODULES[family][:2]
        yield (
            family,
            "patterns, rsLoRA",
            LoraConfig(
                r=4,
                lora_alpha=10,
                use_rslora=True,
                rank_pattern={first: 2},
                alpha_pattern={second: 3},
                target_modules=MODULES[family],
            ),
        )
    for family in ("bert", "llama"):
        yield family, "dora", LoraConfig(r=4, lora_alpha=10, use_dora=True, target_modules=MODULES[family])
    yield "bert", "one layer", LoraConfig(r=4, target_modules=["query"], layers_to_transform=[1])
    yield "bert", "ia3", IA3Config(target_modules=["key", "value"], feedforward_modules=[])
    yield "llama", "ia3", IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"])
    yield "t5", "ia3", IA3Config(target_modules=["k", "v", "wo"], feedforward_modules=["wo"])
    yield "bert", "vera", VeraConfig(r=4, target_modules=["query", "value"])


def randomise(model: torch.nn.Module) -> None:
    """Weights that matter, in the place of ones that change nothing."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "magnitude" in name:
                parameter.mul_(1.3)
            elif any(word in name for word in ("lora_", "ia3_", "vera_lambda")):
                parameter.copy_(0.3 * torch.randn_like(parameter) + ("ia3_" in name))


def compare(base: Path, config: Any, out: Path) -> tuple[float, float, float]:
    """Effect, difference of our model, difference of PEFT's model loaded from what we wrote."""

    def fresh() -> Any:
        return AutoModel.from_pretrained(base, attn_implementation="eager").eval()

    theirs = get_peft_model(fresh(), config).eval()
    randomise(theirs)
    theirs.save_pretrained(out / "theirs")
    ours = AdapterModel(fresh()).eval()
    (package,) = packages(read(out / "theirs", ours.backbone)[1], ours.backbone)
    name = ours.install(package)
    write_peft(package, out / "ours", facts_of(ours.backbone))
    again = PeftModel.from_pretrained(fresh(), out / "ours").eval()
    inputs = load_file(base / "reference" / "inputs.safetensors")
    with torch.no_grad():
        expected, plain = theirs(**inputs)[0], fresh()(**inputs)[0]
        here, there = ours(**inputs, adapters=name, head="none")[0], again(**inputs)[0]
    effect = float((expected - plain).norm() / plain.norm())
    return effect, float((here - expected).abs().max()), float((there - expected).abs().max())


def main(bases: Path) -> int:
    """Run all cases; the number of those that differ."""
    failed = 0
    print(f"{'family':<12}{'adapter':<18}{'effect':>8}{'read here':>12}{'written':>12}")
    for family, what, config in cases():
        with tempfile.TemporaryDirectory() as out:
            effect, here, there = compare(bases / family, config, Path(out))
        failed += max(here, there) > TOLERANCE
        print(f"{family:<12}{what:<18}{effect:>8.3f}{here:>12.1e}{there:>12.1e}")
    print(f"{failed} failed")
    return failed


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    warnings.filterwarnings("ignore")
    with without_bars():
        sys.exit(1 if main(Path(sys.argv[1])) else 0)
