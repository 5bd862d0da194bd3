"""Folding: a composition at a site compiled, for inference, into one wide bottleneck with mixing in bottleneck space.

    Average   Σ wₖ(zₖUₖ + vₖ): one down-projection for all members, one up-projection with the shares inside.
    Fuse      zₖ = f(h·Dₖ + dₖ), uₖ = zₖUₖ + vₖ, q = h·Wq + bq. The score q·(uₖWk + bk) is, up to q·bk, which all k
              share and which leaves the softmax, zₖ·(q·WkᵀUₖᵀ) + q·Wkᵀvₖᵀ: zₖ meets further columns of the wide
              down-projection. The value matrix goes into the up-projection. For K members of width M that is
              3K·D·M + K·D multiplications a token beside the reference's 2K·D·M + 3·D² + 2K·D, so more
              where K·M > 3D: there the reference runs (`thrifty`).
    Stack     b reads h + zU + v, and (h + zU + v)·D = h·D + z·(UD) + v·D: one down-projection for all, small products
              between. Where b reads through the norm of a post-LN model, what a wrote is written out at full width
              once, normed and read, and the rest is added to it.

Scaling, biases and gates (one number a row) stay in bottleneck space. What would not be exact there is run by the
reference, block by block, and the plan says why: norms of an adapter's own, a fusion that adds the residual to its
values, a fusion of members that move the stream, members in different dtypes. What would cost more is left to it too.

Folded weights are a snapshot, built in float64 and cast, never saved; a single adapter that needs no other weights runs
on its own. `Folded.watch` says when to fold again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import cast

import torch
from torch import nn

from graftwork.compose.formula import Formula, Leaf, Normed, Symbolic, Unfoldable
from graftwork.compose.layout import lay_out
from graftwork.compose.plain import Plain, owned
from graftwork.compose.reference import Modules, Node, bind
from graftwork.compose.tree import Average, Composition, Fuse, Stack, fusions, leaves, show
from graftwork.compose.watch import Watch, parameters
from graftwork.compose.wide import Wide
from graftwork.core.adapter import Adapter
from graftwork.core.bottleneck import Bottleneck, Tied
from graftwork.core.fusion import Fusion
from graftwork.core.phm import PHM

# the largest difference between an executor and the reference, relative to the largest number of a change; the
# reference itself, run in bfloat16, is off by as much
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 0.06}


@dataclass(frozen=True)
class Kept:
    """A part of a composition that the reference runs, and why."""

    composition: str
    reason: str


@dataclass(frozen=True)
class FoldPlan:
    """What folding one composition at one site came to: plain data.

    multiplications: of matrix products, for each token; norms and elementwise work are counted on neither side.
    bytes: of folded weights, beside those of the members. written_out: why something had to be written at full width
    in between.
    """

    site: int
    composition: str
    folded: tuple[str, ...]
    kept: tuple[Kept, ...]
    written_out: tuple[str, ...]
    multiplications: int
    reference_multiplications: int
    bytes: int


@dataclass(frozen=True)
class Folded:
    """A node to call like any other, its plan, and what says whether its members have changed since."""

    node: Node
    plan: FoldPlan
    watch: Watch = field(repr=False)  # the members of which it holds weights


def fold(
    tree: Composition,
    site: int,
    modules: Modules,
    *,
    normed: bool | None,
    width: Callable[[int], int] = int,
    own: bool = False,
    thrifty: bool = False,
) -> Folded | None:
    """Compile a composition at one site for inference; None where none of it has a module there.

    normed: whether a norm follows the residual add at the site (post-LN); None for sites of another kind, which the
    reference runs. width: M of an adapter -> the columns it gets. own: a single adapter may run on its own parameters.
    thrifty: a fusion that would cost more folded is left to the reference. Raises RoutingError for blocks that route.
    """
    if bind(tree, site, modules) is None:
        return None
    folding = _Folding(site, modules, normed, width, own, thrifty)
    node = folding.node(tree)
    assert node is not None  # the reference has one
    held = [weight for _, wide in folding.wides if not _own(wide) for weight in wide.weights]
    plan = FoldPlan(
        site=site,
        composition=show(tree),
        folded=tuple(shown for shown, _ in folding.wides),
        kept=tuple(folding.kept),
        written_out=tuple(folding.written_out),
        multiplications=sum(_products(wide) for _, wide in folding.wides) + folding.multiplications,
        reference_multiplications=multiplications(tree, site, modules),
        bytes=sum(weight.nbytes for weight in held),
    )
    return Folded(node, plan, Watch.joined(folding.watches))


def _own(wide: Wide | Plain) -> bool:
    return isinstance(wide, Plain) and wide.own


def _products(wide: Wide | Plain) -> int:
    return sum(weight.numel() for weight in wide.weights if weight.dim() == 2)


def multiplications(tree: Composition, site: int, modules: Modules) -> int:
    """What the reference multiplies for each token in matrix products, and in attending over members."""
    if bind(tree, site, modules) is None:
        return 0
    if isinstance(tree, str):
        return _of_adapter(cast(nn.Module, modules.adapter(tree, site)))
    children: Sequence[Composition] = cast(Stack, tree).children
    fusion = modules.fusion(tree.name, site) if isinstance(tree, Fuse) else None
    if fusion is not None:
        children = fusion.attended(children)
    inner = sum(multiplications(child, site, modules) for child in children)
    if fusion is None:
        return inner
    count, width = len(children), fusion.width
    squares = sum(one is not None for one in (fusion.query, fusion.key, fusion.value))
    return inner + squares * width * width + 2 * count * width


def _of_adapter(adapter: nn.Module) -> int:
    layers = [module for module in adapter.modules() if isinstance(module, PHM)]
    dense = sum(parameter.numel() for parameter in adapter.parameters() if parameter.dim() == 2)
    tied = sum(_of_adapter(module.owner) for module in adapter.modules() if isinstance(module, Tied))
    return dense + tied + sum(layer.multiplications for layer in layers)


class _Folding:
    """One composition at one site: what was folded, what was not."""

    def __init__(
        self,
        site: int,
        modules: Modules,
        normed: bool | None,
        width: Callable[[int], int] = int,
        own: bool = False,
        thrifty: bool = False,
    ) -> None:
        self.site = site
        self.modules = modules
        self.normed = normed
        self.width, self.own, self.thrifty = width, own, thrifty
        self.wides: list[tuple[str, Wide | Plain]] = []
        self.kept: list[Kept] = []
        self.written_out: list[str] = []
        self.multiplications = 0  # of what is kept
        self.watches: list[Watch] = []  # of what is folded

    def node(self, tree: Composition) -> Node | None:
        """The tree as one wide bottleneck; else its members apart, or the reference."""
        if bind(tree, self.site, self.modules) is None:
            return None
        if self.normed is None:
            self.kept.append(Kept(show(tree), "only sub-layer sites with a plain residual add fold"))
            self.multiplications += multiplications(tree, self.site, self.modules)
            return bind(tree, self.site, self.modules)
        try:
            wide = self.wide(tree, self.normed)
            if self.thrifty and fusions(tree):
                self._refuse_dear(tree, wide)
        except Unfoldable as reason:
            self.kept.append(Kept(show(tree), str(reason)))
            if isinstance(tree, Stack):
                return self._apart(Stack(*self._runs(tree)))
            if isinstance(tree, Average):
                return self._apart(tree)
            self.multiplications += multiplications(tree, self.site, self.modules)
            return bind(tree, self.site, self.modules)
        self.wides.append((show(tree), wide))
        self.watches.append(Watch.of(_members(tree, self.site, self.modules).values(), used=_own(wide)))
        return wide

    def wide(self, tree: Composition, normed: bool) -> Wide | Plain:
        """The tree as one wide bottleneck. Raises Unfoldable."""
        members = _members(tree, self.site, self.modules)
        for name, module in members.items():
            if not isinstance(module, Bottleneck | Fusion):
                raise Unfoldable(f"{name} is a {type(module).__name__}, and only bottleneck adapters fold")
        weights = [weight for module in members.values() for weight in parameters(module) if weight.dim() >= 2]
        if len({weight.dtype for weight in weights}) > 1:
            dtypes = ", ".join(sorted({str(weight.dtype).removeprefix("torch.") for weight in weights}))
            raise Unfoldable(f"its members have different dtypes: {dtypes}")
        up = next(module.up.weight.detach() for module in members.values() if isinstance(module, Bottleneck))
        device = "meta" if any(weight.is_meta for weight in weights) else "cpu"
        formula = Formula(torch.zeros(len(up), dtype=torch.float64, device=device), normed, self.width)
        node = bind(tree, self.site, Symbolic(formula, self.modules))
        assert node is not None  # the reference has one
        before, after = formula.of(node)
        wide = lay_out(formula, before, after, up.to(device) if device == "meta" else up)
        if self.own and isinstance(wide, Plain) and isinstance(node, Leaf):
            wide = owned(wide, node.adapter)
        for step in formula.steps:
            if isinstance(step, Normed) and step.inner.ups:
                names = ", ".join(dict.fromkeys(name for said in step.inner.ups for name in said.names))
                self.written_out.append(f"the norm of the site reads the stream after {names}")
        return wide

    def _refuse_dear(self, tree: Composition, wide: Wide | Plain) -> None:
        """Raise Unfoldable for what costs more folded: a fusion with K·M > 3D, or about that."""
        folded, reference = _products(wide), multiplications(tree, self.site, self.modules)
        if folded > reference:
            raise Unfoldable(
                f"folding would cost more: {folded} multiplications a token, and the reference {reference}"
            )

    def _runs(self, tree: Stack) -> list[Composition]:
        """Members that fold stay together, as long as that is not the whole Stack again."""
        runs = [list(run) for _, run in groupby(tree.children, self._folds)]
        if len(runs) == 1:
            return list(tree.children)
        return [run[0] if len(run) == 1 else Stack(*run) for run in runs]

    def _folds(self, tree: Composition) -> bool:
        apart = _Folding(self.site, self.modules, self.normed, thrifty=self.thrifty)
        apart.node(tree)
        return not apart.kept

    def _apart(self, block: Stack | Average) -> Node | None:
        """The members folded apart, under the reference's own block: its leaves are numbers that stand for nodes."""
        nodes = [self.node(child) for child in block.children]
        numbers = [str(number) for number in range(len(nodes))]
        shares = block.shares if isinstance(block, Average) else None
        over = Stack(*numbers) if shares is None else Average(*numbers, weights=shares)
        return bind(over, self.site, _Numbered(nodes))


@dataclass(frozen=True)
class _Numbered:
    """Nodes under the names 0, 1, …"""

    nodes: Sequence[Node | None]

    def adapter(self, name: str, site: int) -> Adapter | None:
        """As `Modules.adapter`."""
        return cast("Adapter | None", self.nodes[int(name)])

    def fusion(self, name: str, site: int) -> Fusion | None:
        """As `Modules.fusion`: none."""
        return None


def _members(tree: Composition, site: int, modules: Modules) -> dict[str, nn.Module]:
    """The modules of adapters and fusions in the tree, by name; a fusion's name says that it is one."""
    adapters = {name: modules.adapter(name, site) for name in leaves(tree)}
    fused = {f"fusion {fuse.name}": modules.fusion(fuse.name, site) for fuse in fusions(tree)}
    found = {**adapters, **fused}
    return {name: cast(nn.Module, module) for name, module in found.items() if module is not None}
