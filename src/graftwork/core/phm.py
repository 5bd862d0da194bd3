"""Parameterised hypercomplex multiplication (Zhang et al. 2021), as Compacter uses it (Mahabadi et al. 2021, §4).

    y = x·H + b       H = Σᵢ rᵢ ⊗ Wᵢ,  i = 1 … n       rᵢ (n, n): the rule;  Wᵢ (in/n, out/n)

`factorized_phm_W` makes Wᵢ = lᵢ·tᵢ of rank `phm_rank`, `factorized_phm_rule` makes rᵢ an outer product. The rule, and
the Wᵢ, may be shared by all sites of an adapter: Compacter shares the rule.

H has in·out numbers and is not needed. With Wᵢ = lᵢtᵢ of rank k a token is read in n pieces by all lᵢ at once, and what
comes out meets the rule and the tᵢ in one further product (or the other way round, where out > in): with n = 4, k = 1
and 768 -> 24 that is 3,456 multiplications a token instead of 18,432. `dense` makes H where a matrix is wanted.

Knows nothing of sites; what is shared is handed in.
"""

from typing import Literal, cast

import torch
from torch import Tensor, nn

from graftwork.core.bottleneck_options import BottleneckOptions
from graftwork.core.distributions import begin
from graftwork.core.initial import blank, generator_of
from graftwork.errors import AdapterError

Side = Literal["down", "up"]


class SharedPHM(nn.Module):
    """What the hypercomplex layers of one adapter have in common: `rule`, `down.W`, `up.W`, or their factors.

    width, bottleneck: of every site, needed where the Wᵢ are shared.
    """

    def __init__(self, config: BottleneckOptions, width: int, bottleneck: int) -> None:
        super().__init__()
        source = generator_of(config.init_weights_seed, _SHARED_STREAM)
        if config.shared_phm_rule:
            _add_rule(self, config, source, (config.phm_init_range, 1.0))
        if config.shared_W_phm:
            for side, inputs, outputs in (("down", width, bottleneck), ("up", bottleneck, width)):
                holder = nn.Module()
                _add_matrices(holder, config, cast(Side, side), (inputs, outputs), source)
                self.add_module(side, holder)


class PHM(nn.Module):
    """One hypercomplex layer, (..., inputs) -> (..., outputs). Raises AdapterError where n does not divide a width."""

    def __init__(
        self,
        size: tuple[int, int],
        config: BottleneckOptions,
        side: Side,
        shared: SharedPHM | None = None,
        source: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.in_features, self.out_features = size
        for name, width in zip(
            ("width", "bottleneck") if side == "down" else ("bottleneck", "width"), size, strict=True
        ):
            if width % config.phm_dim:
                raise AdapterError(
                    f"a hypercomplex layer {size[0]} -> {size[1]}: the {name} {width} is not a multiple of phm_dim "
                    f"{config.phm_dim}; choose a reduction_factor or bottleneck_size and a phm_dim that fit"
                )
        if shared is None and (config.shared_phm_rule or config.shared_W_phm):
            raise AdapterError("a hypercomplex layer with shared parameters needs what `share` made for its adapter")
        self._shared = (shared,)  # in a tuple: it is stored once, with the adapter, and not under every site
        if not config.shared_phm_rule:
            _add_rule(self, config, source, (0.01, 0.01))
        if not config.shared_W_phm:
            _add_matrices(self, config, side, size, source)
        self.bias = nn.Parameter(torch.zeros(size[1])) if config.phm_bias else None
        self._matrices: tuple[nn.Module, ...] = ()  # where the Wᵢ are, if not here
        if config.shared_W_phm:
            self._matrices = (cast(nn.Module, getattr(shared, side)),)
        self.multiplications, self._thin = _cost(size, config)

    def forward(self, x: Tensor) -> Tensor:
        """x·H + b, (..., inputs) -> (..., outputs)."""
        y = self._through_factors(x) if self._thin else x @ self._matrix(self._rule(x), self._factors(x))
        return y if self.bias is None else y + self.bias

    def dense(self, like: Tensor) -> Tensor:
        """Hᵀ as the weight of a linear layer, (outputs, inputs), computed in the dtype and on the device of `like`."""
        return self._matrix(self._rule(like).to(like), [part.to(like) for part in self._factors(like)]).T

    @property
    def weight(self) -> Tensor:
        """Hᵀ as the weight of a linear layer, (outputs, inputs), made on every call."""
        return self.dense(self._factors(None)[0])

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which it computes."""
        return self._factors(None)[0].dtype

    @property
    def shared(self) -> SharedPHM | None:
        """What this layer shares with those of other sites; its parameters are not this layer's own."""
        return self._shared[0]

    def _rule(self, like: Tensor | None) -> Tensor:
        """rᵢ, (n, n, n)."""
        owner = cast(nn.Module, self.shared) if self.config.shared_phm_rule else self
        names = ("rule_left", "rule_right") if self.config.factorized_phm_rule else ("rule",)
        parts = [_near(cast(Tensor, getattr(owner, name)), like) for name in names]
        rule = parts[0] if len(parts) == 1 else parts[0] @ parts[1]
        return rule if self.config.learn_phm else rule.detach()

    def _factors(self, like: Tensor | None) -> list[Tensor]:
        """Wᵢ, (n, in/n, out/n), or lᵢ and tᵢ."""
        owner = self._matrices[0] if self._matrices else self
        names = ("W_left", "W_right") if self.config.factorized_phm_W else ("W",)
        return [_near(cast(Tensor, getattr(owner, name)), like) for name in names]

    def _matrix(self, rule: Tensor, factors: list[Tensor]) -> Tensor:
        """H, (inputs, outputs)."""
        matrices = factors[0] if len(factors) == 1 else factors[0] @ factors[1]
        return torch.einsum("iab,icd->acbd", rule, matrices).reshape(self.in_features, self.out_features)

    def _through_factors(self, x: Tensor) -> Tensor:
        """x·H without H, (..., inputs) -> (..., outputs)."""
        rule, (left, right) = self._rule(x), self._factors(x)
        n = self.config.phm_dim
        if self.in_features >= self.out_features:
            read = x.reshape(*x.shape[:-1], n, -1) @ left.transpose(0, 1).flatten(1)  # (…, n, n·k): by piece of x
            write = torch.einsum("iab,ird->airbd", rule, right).reshape(-1, self.out_features)
            return read.flatten(-2) @ write
        read = x @ torch.einsum("iab,icr->acbir", rule, left).reshape(self.in_features, -1)
        return (read.reshape(*x.shape[:-1], n, -1) @ right.flatten(0, 1)).flatten(-2)  # (…, n, n·k): by piece of y


_SHARED_STREAM = (1 << 16) - 1  # of the generator: no site has this number


def _near(tensor: Tensor, like: Tensor | None) -> Tensor:
    # a model may lie on several devices; what its sites share lies on one
    return tensor if like is None or tensor.device == like.device else tensor.to(like.device)


def _cost(size: tuple[int, int], config: BottleneckOptions) -> tuple[int, bool]:
    """Multiplications for each token, and whether they are spent on factors instead of on H."""
    n, rank = config.phm_dim, config.phm_rank
    dense, thin = size[0] * size[1], n * rank * max(size) + n * n * rank * min(size)
    return (thin, True) if config.factorized_phm_W and thin < dense else (dense, False)


def _add_rule(
    module: nn.Module, config: BottleneckOptions, source: torch.Generator | None, spread: tuple[float, float]
) -> None:
    """Give a module rᵢ; spread: the deviation of `normal`, the bound of `uniform`."""
    n = config.phm_dim
    shapes = {"rule_left": (n, n, 1), "rule_right": (n, 1, n)} if config.factorized_phm_rule else {"rule": (n, n, n)}
    for name, shape in shapes.items():
        values = blank(*shape)
        values.requires_grad_(config.learn_phm)
        if config.phm_c_init == "normal":
            nn.init.normal_(values, std=spread[0], generator=source)
        else:
            nn.init.uniform_(values, -spread[1], spread[1], generator=source)
        module.register_parameter(name, values)
    module.frozen = () if config.learn_phm else tuple(shapes)  # type: ignore[assignment]


def _add_matrices(
    module: nn.Module, config: BottleneckOptions, side: Side, size: tuple[int, int], source: torch.Generator | None
) -> None:
    """Give a module Wᵢ."""
    n, rank = config.phm_dim, config.phm_rank
    rows, columns = size[0] // n, size[1] // n
    shapes = {"W": (n, rows, columns)}
    if config.factorized_phm_W:
        shapes = {"W_left": (n, rows, rank), "W_right": (n, rank, columns)}
    for name, shape in shapes.items():
        values = blank(*shape)
        for matrix in values.detach():
            _begin(matrix, config, source)
        if side == "up" and name != "W_left" and config.init_weights == "mam_adapter":
            nn.init.zeros_(values)  # one factor of two: with both at zero nothing would learn
        module.register_parameter(name, values)


def _begin(matrix: Tensor, config: BottleneckOptions, source: torch.Generator | None) -> None:
    if config.init_weights in ("houlsby", "adapter_bert"):
        begin(matrix, config.init_weights, source)
    elif config.hypercomplex_nonlinearity == "glorot-uniform":
        nn.init.xavier_uniform_(matrix, generator=source)
    elif config.hypercomplex_nonlinearity == "glorot-normal":
        nn.init.xavier_normal_(matrix, generator=source)
    else:
        nn.init.normal_(matrix, std=config.phm_init_range, generator=source)
