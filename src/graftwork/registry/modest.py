"""Nothing is allocated on a file's word alone: what a package says of sizes, beside the tensors that it holds."""

from collections.abc import Mapping
from typing import Any

from graftwork.errors import PackageError
from graftwork.registry.package import Package

_SIZES = ("r", "bottleneck_size", "prefix_length", "prompt_length", "phm_dim", "phm_rank", "num_outputs", "width")
_FACTORS = ("reduction_factor", "inv_adapter_reduction_factor")
_MODEST = 4096  # a size that is allocated whatever the tensors say


def check_sizes(package: Package, name: str, hidden: int) -> None:
    """Raise PackageError for a size that no tensor of the package has. hidden: the widest stream of the base."""
    limit = max([_MODEST, hidden, *(size for tensor in package.tensors.values() for size in tensor.shape)])
    head = package.manifest.head
    written: list[Mapping[str, Any]] = [package.manifest.method or {}, {} if head is None else head.model_dump()]
    if head is not None and head.layers > len(package.tensors) + 1:
        raise PackageError(f"package {name!r}: a head of {head.layers} layers has {len(package.tensors)} tensors")
    while written:
        for key, value in written.pop().items():
            values = (
                list(value.values()) if isinstance(value, Mapping) else value if isinstance(value, list) else [value]
            )
            written += [one for one in [value, *values] if isinstance(one, Mapping)]
            numbers = [one for one in values if isinstance(one, int | float)]
            if key in _SIZES and any(one > limit for one in numbers):
                raise PackageError(f"package {name!r}: {key} {value!r:.80} is more than any tensor has ({limit})")
            if key in _FACTORS and any(0 < one < hidden / limit for one in numbers):
                raise PackageError(f"package {name!r}: {key} {value!r:.80} would make layers wider than {limit}")
