"""What `write_cases.py` wrote, loaded by the real `adapters` 1.3.0 and compared with the numbers it once wrote down.

    python benchmarks/peers/load_cases.py CONFORMANCE OUT         in an environment with adapters==1.3.0

Where the library itself deviates from the closed form, the comparison is with what it returned for its own files
(`incumbent.safetensors`). Cases of static heads are left out: a head of ours is a flexible one there.
"""

import json
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import adapters
import torch
import transformers
from adapters.composition import AdapterCompositionBlock
from safetensors.torch import load_file

TOLERANCE = 1e-4


def difference(folder: Path, out: Path) -> float | None:
    """The largest difference of the main output of one case, None for a static head."""
    case: dict[str, Any] = json.loads((folder / "case.json").read_text("utf8"))
    name = case["model_class"]
    flexible = name.endswith("AdapterModel")
    if not flexible and not name.endswith("Model"):
        return None
    model = getattr(adapters if flexible else transformers, name).from_pretrained(
        folder / case["base"], attn_implementation=case["attn_implementation"]
    )
    if not flexible:
        adapters.init(model)
    if case["model_type"] == "modernbert":  # init() gives a random bias there, which no file holds
        for layer in model.layers:
            layer.attn.Wqkv.bias = None
    for part in case["adapters"]:
        model.load_adapter(str(out / part["name"]), with_head=flexible and part["head"])
    for part in case["fusions"]:
        model.load_adapter_fusion(str(out / part["name"]))
    model.adapters_config.active_setup = AdapterCompositionBlock.from_dict(case["composition"])
    model.adapters_config.skip_layers = case["active_setup"]["skip_layers"]
    if flexible:
        model.active_head = case["active_setup"]["head"]
    own = folder / "incumbent.safetensors"
    expected = load_file(own if own.exists() else folder / "expected.safetensors")
    with torch.no_grad():
        output = model.eval()(**load_file(folder / "inputs.safetensors"))
    key = case["primary_output"]
    got = output.head_outputs[0]["logits"] if key.startswith("head_outputs") else output[key]
    return float((got - expected[key]).abs().max())


def main(root: Path, out: Path) -> int:
    """Load and compare all cases; the number of those that differ or fail."""
    passed, failed, left_out = 0, 0, 0
    for entry in json.loads((root / "index.json").read_text("utf8")):
        try:
            found = difference(root / entry["path"], out / entry["id"])
        except Exception as error:  # whatever the other library raises is what is to be seen
            failed += 1
            print(f"{entry['id']}: {type(error).__name__}: {str(error)[:200]}")
            continue
        left_out += found is None
        passed += found is not None and found <= TOLERANCE
        if found is not None and found > TOLERANCE:
            failed += 1
            print(f"{entry['id']}: differs by {found:.2e}")
    print(f"adapters {adapters.__version__}: {passed} passed, {failed} failed, {left_out} static heads left out")
    return failed


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    logging.disable(logging.CRITICAL)
    warnings.filterwarnings("ignore")
    sys.exit(1 if main(Path(sys.argv[1]), Path(sys.argv[2])) else 0)
