"""Where `adapters` 1.3.0 and we compute the same formula, so that what was trained there folds as ours does.

For members that are added to h₀ and written before the norm (residual_before_ln, original_ln_after, not parallel, no
gate and no norm of their own), with rₖ what member k reads and uₖ what it says, both give

    a member alone   what the member itself computes
    Stack            h₀ + Σ uₖ: every pre-step reads h₀ plus what came before, through the norm and r again
    Average          Σ wₖ(h₀ + uₖ) = h₀ + Σ wₖuₖ, as Σ wₖ = 1, where all read what the first one reads
    Fuse             h₀ + V·Σ αₖuₖ, where all read what the last one reads
    Stack of these   the same with h₀ plus what came before in the place of h₀

Averages and fusions have to have all of their members at the site: that library fuses those that a layer has. Other
blocks in blocks, and sites that it reads in another way than we do (`core/quirks.py`), are left to `legacy.py`.
"""

from graftwork.compose.legacy import LegacyModules
from graftwork.compose.tree import Average, Composition, Fuse, Stack, leaves
from graftwork.core.bottleneck import Bottleneck


def agrees(tree: Composition, site: int, modules: LegacyModules) -> bool:
    """Whether a composition means the same at a site by `legacy.py` and by `reference.py`."""
    if modules.view(site) is not None:
        return False
    if isinstance(tree, str):
        return isinstance(modules.adapter(tree, site), Bottleneck)
    if not isinstance(tree, Stack):
        return _mixture(tree, site, modules)
    if len(tree.children) == 1 and not isinstance(tree.children[0], str):
        return False  # that library takes the pre-step of a block alone in a Stack twice
    # one that is missing there changes nothing
    present = [child for child in tree.children if any(modules.adapter(name, site) for name in leaves(child))]
    return bool(present) and all(_member(child, site, modules) for child in present)


def _member(tree: Composition, site: int, modules: LegacyModules) -> bool:
    """Whether a member of a Stack reads and writes as one of ours."""
    if not isinstance(tree, str):
        return _mixture(tree, site, modules)
    module = modules.adapter(tree, site)
    return isinstance(module, Bottleneck) and _plain(module)


def _mixture(tree: Composition, site: int, modules: LegacyModules) -> bool:
    """Whether it is an Average or a Fuse of adapters that are all there and read alike."""
    if not isinstance(tree, Average | Fuse) or not all(isinstance(child, str) for child in tree.children):
        return False
    found = [modules.adapter(str(child), site) for child in tree.children]
    members = [module for module in found if isinstance(module, Bottleneck) and _plain(module)]
    return len(members) == len(found) and len({member.config.original_ln_before for member in members}) == 1


def _plain(member: Bottleneck) -> bool:
    """Whether it is added to h₀ as it is, and written before the norm."""
    norms = (member.norm_before, member.norm_after, member.norm)
    config = member.config
    added = not config.is_parallel and (config.residual_before_ln is True or not config.original_ln_before)
    return added and not member.writes_after and member.gate is None and all(norm is None for norm in norms)
