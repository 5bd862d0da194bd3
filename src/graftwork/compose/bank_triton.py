"""The products of a bank as Triton kernels: on a GPU the weights of each slot are read where they lie.

    slot_product      y = x·W[slot] + (b[slot], or what it is added to)
    slot_bottleneck   y = f(x·D[slot] + d[slot])·U[slot] + u[slot] in one launch; z (M columns) never leaves the chip

x (N, I), W (S, I, O), b (S, O), slots (n,) on one device, W and b in one piece; an *item* is N/n rows. Slots are data,
so one launch serves every routing and a CUDA graph replays it. Where items are single rows, as in decoding, no matrix
unit is used: each weight is read once, and that is the time it takes. Sums are float32 in an order that other items do
not change.

Sizes of blocks are those that were quickest on an H200 (`benchmarks/gpu.py --parts tiles`).

TRITON_INTERPRET=1 runs the kernels on a CPU, for tests.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor


class Tile(NamedTuple):
    """How a kernel cuts its work: rows, inner and outer columns of a block (of two-byte numbers), warps, stages."""

    m: int
    k: int
    n: int
    warps: int
    stages: int


# (what, whether an item is a single row) -> its tile; a narrow product has at most 128 columns
TILES = {
    ("narrow", True): Tile(1, 256, 16, 4, 2),
    ("narrow", False): Tile(64, 64, 64, 4, 3),
    ("broad", True): Tile(1, 128, 64, 4, 3),
    ("broad", False): Tile(32, 64, 64, 4, 3),
    ("bottleneck", True): Tile(1, 128, 128, 8, 3),
    ("bottleneck", False): Tile(32, 128, 128, 8, 3),
}
_NUMBERS = 2**14  # of a matrix that a bottleneck holds at a time, in registers
NONE, BIAS, ONTO = 0, 1, 2  # what is added to a product
ACTIVATIONS = {"relu": 1, "gelu": 2, "silu": 3, "tanh": 4, "sigmoid": 5}


@triton.jit
def _rows_of_item(per, block_m: tl.constexpr):
    """The rows of x that this program makes, and which of them there are."""
    item = tl.program_id(0).to(tl.int64)
    local = tl.program_id(1) * block_m + tl.arange(0, block_m)
    return item * per + local, local < per


@triton.jit
def _times(x, weight, rows, there, columns, x_stride, deep: tl.constexpr, wide: tl.constexpr,
           block_k: tl.constexpr, stages: tl.constexpr):  # fmt: skip
    """Some rows of x times some columns of a matrix (deep, wide), in float32."""
    block_m: tl.constexpr = rows.shape[0]
    total = tl.zeros((block_m, columns.shape[0]), dtype=tl.float32)
    for first in tl.range(0, deep, block_k, num_stages=stages):
        inner = first + tl.arange(0, block_k)
        left = tl.load(x + rows[:, None] * x_stride + inner[None, :],
                       mask=there[:, None] & (inner < deep)[None, :], other=0.0)  # fmt: skip
        right = tl.load(weight + inner[:, None] * wide + columns[None, :],
                        mask=(inner < deep)[:, None] & (columns < wide)[None, :], other=0.0)  # fmt: skip
        total = _add_product(total, left, right)
    return total


@triton.jit
def _add_product(total, left, right):
    """total + left·right; a single row is multiplied and summed without matrix units."""
    if left.shape[0] == 1:
        return total + tl.sum(tl.trans(left).to(tl.float32) * right.to(tl.float32), axis=0)[None, :]
    return tl.dot(left, right, total, input_precision="ieee")


@triton.jit
def _activated(z, activation: tl.constexpr):
    """f(z), by its number in ACTIVATIONS."""
    if activation == 1:
        return tl.maximum(z, 0.0, propagate_nan=tl.PropagateNan.ALL)
    elif activation == 2:
        return 0.5 * z * (1.0 + tl.erf(z * 0.7071067811865476))
    elif activation == 3:
        return z * tl.sigmoid(z)
    elif activation == 4:
        size = tl.abs(z)
        left = tl.exp(-2.0 * size)
        far = (1.0 - left) / (1.0 + left)
        square = z * z  # near 0, where 1 - left has few digits, the first terms of the series
        near = size * (1.0 - square * (0.3333333333333333 - square * 0.13333333333333333))
        return tl.where(size < 0.1, near, far) * tl.where(z < 0.0, -1.0, 1.0)
    else:
        return tl.sigmoid(z)


@triton.jit
def _product_kernel(x, weight, added, slots, out, per, x_stride, added_stride, deep: tl.constexpr, wide: tl.constexpr,
                    kind: tl.constexpr, block_m: tl.constexpr, block_k: tl.constexpr, block_n: tl.constexpr,
                    stages: tl.constexpr):  # fmt: skip
    slot = tl.load(slots + tl.program_id(0)).to(tl.int64)
    rows, there = _rows_of_item(per, block_m)
    columns = tl.program_id(2) * block_n + tl.arange(0, block_n)
    total = _times(x, weight + slot * deep * wide, rows, there, columns, x_stride, deep, wide, block_k, stages)
    inside = there[:, None] & (columns < wide)[None, :]
    if kind == 1:
        total += tl.load(added + slot * wide + columns, mask=columns < wide, other=0.0)[None, :].to(tl.float32)
    if kind == 2:
        total += tl.load(added + rows[:, None] * added_stride + columns[None, :], mask=inside, other=0.0).to(tl.float32)
    tl.store(out + rows[:, None] * wide + columns[None, :], total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _bottleneck_kernel(x, down, start, up, constant, slots, out, per, x_stride, deep: tl.constexpr,
                       width: tl.constexpr, wide: tl.constexpr, activation: tl.constexpr, block_m: tl.constexpr,
                       block_k: tl.constexpr, block_z: tl.constexpr, block_n: tl.constexpr,
                       stages: tl.constexpr):  # fmt: skip
    slot = tl.load(slots + tl.program_id(0)).to(tl.int64)
    rows, there = _rows_of_item(per, block_m)
    inner = tl.arange(0, block_z)
    z = _times(x, down + slot * deep * width, rows, there, inner, x_stride, deep, width, block_k, stages)
    z += tl.load(start + slot * width + inner, mask=inner < width, other=0.0)[None, :].to(tl.float32)
    z = _activated(z, activation).to(up.dtype.element_ty)
    for first in tl.range(0, wide, block_n, num_stages=stages):
        columns = first + tl.arange(0, block_n)
        right = tl.load(up + slot * width * wide + inner[:, None] * wide + columns[None, :],
                        mask=(inner < width)[:, None] & (columns < wide)[None, :], other=0.0)  # fmt: skip
        y = _add_product(tl.zeros((block_m, block_n), dtype=tl.float32), z, right)
        y += tl.load(constant + slot * wide + columns, mask=columns < wide, other=0.0)[None, :].to(tl.float32)
        tl.store(out + rows[:, None] * wide + columns[None, :], y.to(out.dtype.element_ty),
                 mask=there[:, None] & (columns < wide)[None, :])  # fmt: skip


def slot_product(x: Tensor, weight: Tensor, bias: Tensor | None, onto: Tensor | None, slots: Tensor) -> Tensor:
    """x·W[slot] + b[slot], or added to `onto` (N, O), or neither: (N, O)."""
    x, (deep, wide), per = _rows(x), weight.shape[1:], _per(x, slots)
    added, kind = (onto, ONTO) if onto is not None else (bias, BIAS) if bias is not None else (x, NONE)
    added = _rows(added) if kind == ONTO else added
    out = x.new_empty(x.shape[0], wide)
    tile = _tile("narrow" if wide <= 128 else "broad", per, x)
    block_k, block_n = min(_power(deep), tile.k), min(_power(wide), tile.n)
    grid = len(slots), triton.cdiv(per, tile.m), triton.cdiv(wide, block_n)
    with torch.cuda.device_of(x):  # Triton launches on the current device, wherever its arguments are
        _product_kernel[grid](
            x, weight, added, slots, out, per, x.stride(0), added.stride(0), deep, wide, kind, tile.m, block_k, block_n,
            tile.stages, num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
    return out


def slot_bottleneck(
    x: Tensor, down: Tensor, start: Tensor, up: Tensor, constant: Tensor, activation: str, slots: Tensor
) -> Tensor:
    """f(x·D[slot] + d[slot])·U[slot] + u[slot], (N, O); `activation` is one of ACTIVATIONS."""
    x, (deep, width), wide, per = _rows(x), down.shape[1:], up.shape[2], _per(x, slots)
    out = x.new_empty(x.shape[0], wide)
    tile, block_z = _tile("bottleneck", per, x), _power(width)
    room = _NUMBERS // block_z
    block_k, block_n = min(_power(deep), tile.k, room), min(_power(wide), tile.n, room)
    with torch.cuda.device_of(x):
        _bottleneck_kernel[len(slots), triton.cdiv(per, tile.m)](
            x, down, start, up, constant, slots, out, per, x.stride(0), deep, width, wide, ACTIVATIONS[activation],
            tile.m, block_k, block_z, block_n, tile.stages, num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
    return out


def _rows(tensor: Tensor) -> Tensor:
    """A tensor (N, D) whose rows lie in one piece each."""
    return tensor if tensor.stride(1) == 1 else tensor.contiguous()


def _per(x: Tensor, slots: Tensor) -> int:
    return x.shape[0] // len(slots)


def _power(size: int) -> int:
    """The least power of two that holds a size, for matrix units 16."""
    return max(16, 1 << (size - 1).bit_length())


def _tile(what: str, per: int, x: Tensor) -> Tile:
    """The tile of a kernel, its blocks half as large where numbers have four bytes."""
    tile = TILES[what, per == 1]
    smaller = 2 if x.element_size() == 4 else 1
    return tile._replace(m=16 if 1 < per <= 16 else tile.m, k=tile.k // smaller, n=max(16, tile.n // smaller))
