"""The hooks of sub-layer sites: where an adapter gets its turn, and how its change gets into the stream.

    at norm    before the norm that follows the add, which reads s = h₀ + r:  LN(s + Δ) + Δ'
    apart      catch r where it enters; change h₀ into h₀ + Δ before the add; add Δ' to what the norm gives

The first serves post-LN models. What uses nothing but the stream (Pfeiffer's adapters) needs no other hook; h₀ and r
are caught besides where something reads them by themselves. The sum that the norm reads is the base's own either way,
so that what an adapter gives does not move by a bit when another that uses more comes beside it. A change of zero
leaves the model to the last bit as it is.

Hooks are on submodules *inside* the layers, for transformers records hidden states by hooks on the layers themselves,
which a hook on a layer could miss. They are bound methods, so `deepcopy` of a model gets hooks of its own, not the
original's.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.compiler import is_dynamo_compiling
from torch.utils.hooks import RemovableHandle

from graftwork.core.hooks import Runtime
from graftwork.core.locate import Located
from graftwork.core.site import NO_DELTA, NormReading, Reading, Uses
from graftwork.errors import BackboneError, RoutingError


def seen_at_norm(located: Located, sites: Iterable[Located]) -> bool:
    """Whether the norm of a sub-layer site is called with h₀ + r, alone, once each time the site runs; of all sites."""
    row, norm = located.row, located.modules.get("norm")
    if norm is None or row is None or "inner" in located.modules:
        return False
    owners = [one for one in sites if one.modules.get("norm") is norm]
    return len(owners) == 1 and not (row.shared or row.flat or row.beside)


class Residual:
    """The hook that catches r where it enters."""

    def __init__(self, located: Located, runtime: Runtime) -> None:
        self.site = located.site
        self.module = located.modules["residual"]
        self.position, self.keyword = located.argument
        self.runtime = runtime

    def place(self) -> RemovableHandle:
        """Register the hook; what is returned takes it off again."""
        return self.module.register_forward_pre_hook(self.catch, with_kwargs=True)

    def catch(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Forward pre-hook on the module that receives the residual r."""
        if self.runtime.route is not None:
            residual = args[self.position] if self.position < len(args) else kwargs.get(self.keyword)
            if not isinstance(residual, Tensor):
                raise BackboneError(
                    f"site {self.site.name}: a {type(module).__name__} was called without the residual as argument "
                    f"{self.position} or {self.keyword!r}; its family row names the wrong module or argument"
                )
            self.runtime.residuals[self.site.index] = residual


class Behind:
    """The hook that adds to what a norm gives."""

    def __init__(self, located: Located, runtime: Runtime, norm: nn.Module) -> None:
        self.site = located.site
        self.norm = norm
        self.runtime = runtime
        self.placed = False

    def place(self) -> RemovableHandle:
        """Register the hook; what is returned takes it off again."""
        self.placed = True
        return self.norm.register_forward_hook(self.finish)

    def wait(self, change: Tensor) -> None:
        """Keep a change until the norm has run. Raises RoutingError where no hook would add it."""
        if not self.placed:
            raise RoutingError(
                f"site {self.site.name}: a change is to be written behind the norm, and nothing said that it would "
                "be; a module that does so says so: uses = Uses(after=True, ...)"
            )
        self.runtime.pending[self.site.index] = change

    def finish(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        """Forward hook on the norm after the residual add (post-LN models), or on that of the branch before it."""
        after = self.runtime.pending.pop(self.site.index, None) if self.runtime.pending else None
        return None if after is None else output + after


class NormHook:
    """The hooks of a sub-layer site whose norm reads h₀ + r."""

    def __init__(self, located: Located, runtime: Runtime) -> None:
        self.site = located.site
        self.index = located.site.index
        self.runtime = runtime
        self.norm = located.modules["norm"]
        self.output = located.modules["output"]
        self.residual = Residual(located, runtime)
        self.behind = Behind(located, runtime, self.norm)
        self.parts = False

    def place(self, uses: Uses) -> list[RemovableHandle]:
        """Register the hooks; what is returned takes them off again."""
        self.parts = uses.parts
        placed = [self.norm.register_forward_pre_hook(self.change)]
        if uses.parts:
            placed += [self.output.register_forward_hook(self.hold), self.residual.place()]
        if uses.after:
            placed.append(self.behind.place())
        return placed

    def hold(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        """Forward hook on the last module before the residual add; its output is h₀, (B, T, D)."""
        if self.runtime.route is not None:
            self.runtime.outputs[self.index], self.runtime.rows = output, output.shape[0]

    def change(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Forward pre-hook on the norm after the residual add; its input is h₀ + r, (B, T, D)."""
        runtime, index = self.runtime, self.index
        if runtime.route is None or not runtime.opened:
            return None
        if not args:
            raise BackboneError(
                f"site {self.site.name}: a {type(module).__name__} was called without h₀ + r as its first argument; "
                "its family row names the wrong module"
            )
        summed, output, residual = args[0], None, None
        if self.parts:
            output, residual = runtime.outputs.pop(index, None), runtime.residuals.pop(index, None)
        if runtime.widened and (widen := runtime.widened.get(index)) is not None:
            summed, output, residual = (None if one is None else widen(one) for one in (summed, output, residual))
        direct = None if is_dynamo_compiling() else runtime.direct.get(index)
        changed = None if direct is None else direct(summed, self.norm.forward, output, residual)
        if changed is None:
            delta = runtime.route.delta(index, self._reading(summed, output, residual)) or NO_DELTA
            if delta.after is not None:
                self.behind.wait(delta.after)
            changed = summed if delta.before is None else summed + delta.before
        return None if changed is args[0] else (changed, *args[1:])

    def _reading(self, summed: Tensor, output: Tensor | None, residual: Tensor | None) -> Reading:
        """What there is to read; the norm by its `forward`, past these hooks: this is no step of the model."""
        runtime, norm = self.runtime, self.norm.forward
        if not self.parts:
            return NormReading(summed, norm, runtime.mask)
        if not isinstance(output, Tensor) or residual is None:
            raise BackboneError(
                f"site {self.site.name}: its norm ran before its output and its residual were seen, or there was more "
                "than one output; its family row must name the last module before the residual add, and the module "
                "that receives the residual before that"
            )
        return Reading(output, residual, norm, mask=runtime.mask, summed=summed)


class SiteHook:
    """The hooks of one sub-layer site: catch the residual, change the output, change what leaves the norm.

    feeds: the site beside it, whose residual is the stream after this one.
    """

    def __init__(self, located: Located, runtime: Runtime, feeds: int | None = None) -> None:
        self.site = located.site
        self.index = located.site.index
        self.runtime = runtime
        self.norm = located.modules.get("norm")
        self.inner = located.modules.get("inner")
        self.residual = Residual(located, runtime)
        last = located.modules.get("norm", located.modules.get("inner"))
        self.behind = None if last is None else Behind(located, runtime, last)
        self.shared = located.row is not None and located.row.shared
        self.flat = located.row is not None and located.row.flat
        self.feeds = feeds
        self.located = located

    def place(self, uses: Uses) -> list[RemovableHandle]:
        """Register the hooks; what is returned takes them off again."""
        modules, row = self.located.modules, self.located.row
        placed = [modules["output"].register_forward_hook(self.change)]
        if row is None or row.beside is None:
            placed.append(self.residual.place())
        if self.behind is not None and uses.after:
            placed.append(self.behind.place())
        return placed

    def change(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        """Forward hook on the last module before the residual add; its output is h₀, (B, T, D)."""
        runtime = self.runtime
        if runtime.route is None or not runtime.opened:
            return None
        residual = runtime.residuals.pop(self.index, None)
        if residual is None and self.shared:
            return None  # another sub-layer's turn
        if residual is None or not isinstance(output, Tensor):
            raise BackboneError(
                f"site {self.site.name}: a {type(module).__name__} "
                + ("ran before its residual was seen" if residual is None else "returned more than one tensor")
                + "; its family row must name the last module before the residual add, and the module that receives "
                "the residual before that"
            )
        if self.flat:
            changed = self._changed(*(one.view(runtime.rows, -1, one.shape[-1]) for one in (output, residual)))
            return None if changed is None else changed.flatten(0, 1)
        runtime.rows = output.shape[0]
        changed = self._changed(output, residual)
        if self.feeds is not None:
            runtime.residuals[self.feeds] = (output if changed is None else changed) + residual
        return changed

    def _changed(self, output: Tensor, residual: Tensor) -> Tensor | None:
        """h₀ + Δ, (B, T, D), or None where nothing changes before the norm."""
        runtime = self.runtime
        assert runtime.route is not None
        # `forward`, past the hooks there: this is a reading, not a step of the model
        norm = None if self.norm is None else self.norm.forward
        inner = None if self.inner is None else self.inner.forward
        delta = runtime.route.delta(self.index, Reading(output, residual, norm, inner, mask=runtime.mask))
        if delta is None:
            return None
        before, after = delta.before, delta.after
        if after is not None and self.behind is not None:
            self.behind.wait(after)
        elif after is not None:  # no norm on the way: both places are one
            before = after if before is None else before + after
        return None if before is None else output + before
