"""Which sites of a model have hooks: none at first, and those of a site once something attaches there.

A hook that nobody uses costs what a dispatch costs, in every call. What is placed at a sub-layer follows from what is
used there (`Uses`), and is placed again when a newcomer uses more. Hooks stay when an adapter goes: they act where a
route says so. torch.compile does not guard hooks: `runtime.opened` names all there are, and every layer asks for it,
by the hooks of its sub-layers or, as long as it has none, by one that does nothing else.

Two things are read off another sub-layer's hooks, which are placed along: the residual of one that is added beside it
(GPT-J), and how many rows there are where a block joins rows and tokens (OPT).
"""

from collections.abc import Callable, Iterator, Sequence

from torch import nn
from torch.utils.hooks import RemovableHandle

from graftwork.core.hooks import Runtime
from graftwork.core.locate import Located
from graftwork.core.site import Site, Uses
from graftwork.core.sublayer import NormHook, SiteHook, seen_at_norm
from graftwork.core.taps import HeadTap, tap_of

_NEIGHBOUR = Uses(parts=True, after=False)


class Openings:
    """The hooks of one model. vocabulary: its own vocabulary projection, if any.

    rows_apart: whether linears are known to get rows and tokens apart where their layer's sub-layers do.
    """

    def __init__(
        self,
        located: Sequence[Located],
        runtime: Runtime,
        vocabulary: Callable[[], nn.Module | None],
        rows_apart: bool = True,
    ) -> None:
        self._located = located
        self._runtime = runtime
        self._vocabulary = vocabulary
        self._rows_apart = rows_apart
        self._uses: dict[int, Uses] = {}  # site -> what its hooks are placed for
        self._handles: dict[int, list[RemovableHandle]] = {}
        self._asking: dict[tuple[str, int], RemovableHandle] = {}  # stack and layer -> its hook that only asks

    @property
    def asking(self) -> tuple[RemovableHandle, ...]:
        """The hooks that only ask."""
        return tuple(self._asking.values())

    def ask(self) -> None:
        """Let every layer without hooks on a sub-layer ask which hooks there are."""
        # inside of every layer, not on it: what is compiled layer by layer leaves the layer's own hooks out
        inside = {(one.site.stack, one.site.layer): one.modules["output"] for one in self._located if one.row}
        for layer, module in inside.items():
            if layer not in self._asking:
                self._asking[layer] = module.register_forward_pre_hook(self._runtime.ask)

    def open(self, site: Site, uses: Uses) -> None:
        """Place the hooks of a site; nothing where they are."""
        had = self._uses.get(site.index)
        wanted = uses if had is None else had | uses
        if wanted == had:
            return
        self._uses[site.index] = wanted
        located = self._located[site.index]
        if site.place == "sublayer":
            self._place(located, wanted)
        elif had is None:
            tap_of(located, self._runtime).place()
            vocabulary = self._vocabulary() if site.place == "embed" else None
            if vocabulary is not None:
                HeadTap(site.index, self._runtime, vocabulary).place()
            self._note(located, "")
        for neighbour in self._neighbours(located):
            self.open(neighbour.site, _NEIGHBOUR)
            if located.row is not None and located.row.beside == neighbour.site.kind:
                self._place(neighbour, self._uses[neighbour.site.index])  # again: by now it feeds this one

    def close(self) -> None:
        """Take the hooks of every sub-layer off again."""
        for handles in self._handles.values():
            for handle in handles:
                handle.remove()
        self._handles.clear()
        self.ask()
        self._runtime.opened += "closed-"
        self._uses = {
            index: uses for index, uses in self._uses.items() if self._located[index].site.place != "sublayer"
        }

    def _place(self, located: Located, uses: Uses) -> None:
        index = located.site.index
        for handle in self._handles.get(index, ()):
            handle.remove()
        at_norm = seen_at_norm(located, self._located)
        feeds = next((one.site.index for one in self._beside(located) if one.site.index in self._uses), None)
        hook = NormHook(located, self._runtime) if at_norm else SiteHook(located, self._runtime, feeds)
        self._handles[index] = hook.place(uses)
        asking = self._asking.pop((located.site.stack, located.site.layer), None)
        if asking is not None:
            asking.remove()  # what is placed asks, too
        used = f"{'p' * uses.parts}{'a' * uses.after}"
        self._note(located, f"n{used}" if at_norm else f"s{used}{'' if feeds is None else feeds}")

    def _note(self, located: Located, how: str) -> None:
        self._runtime.opened += f"{located.site.index}{how}-"

    def _layer(self, located: Located) -> Iterator[Located]:
        """The sub-layers of a site's layer."""
        for one in self._located:
            same = (one.site.stack, one.site.layer) == (located.site.stack, located.site.layer)
            if same and one.row is not None:
                yield one

    def _beside(self, located: Located) -> Iterator[Located]:
        """The sub-layers that are added to the residual of this one, after it."""
        for one in self._layer(located):
            if one.row is not None and one.row.beside == located.site.kind:
                yield one

    def _neighbours(self, located: Located) -> Iterator[Located]:
        layer = list(self._layer(located))
        own = located.row
        linear = located.site.place in ("linear", "input")
        joined = any(one.row is not None and one.row.flat for one in layer) or not self._rows_apart
        tells_rows = joined and (linear or (own is not None and own.flat))
        for one in layer:
            if one is located or one.row is None:
                continue
            if (own is not None and own.beside == one.site.kind) or (tells_rows and not one.row.flat):
                yield one
