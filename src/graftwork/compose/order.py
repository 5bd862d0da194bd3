"""Which adapter may lie on which: a task adapter on a language adapter, and not the other way round.

MAD-X (Pfeiffer et al. 2020): the language adapter makes of a language what the frozen model is at home in, and the task
adapter is trained to read that. What a package was trained for is its role; who holds packages gives roles by name.
An adapter without a known role may lie anywhere, and `Stack(…, order=any)` says that an order is meant as it is.
"""

from collections.abc import Callable

from graftwork.compose.tree import Block, Composition, Stack, leaves, show
from graftwork.errors import CompositionError

TASK, LANGUAGE = "task", "language"


def check_order(tree: Composition, role: Callable[[str], str | None]) -> None:
    """Raise CompositionError, with the order that is meant, for a Stack that has a language adapter on one of a task.

    role: of an adapter by name, None where it is not known.
    """
    if not isinstance(tree, Block):
        return
    for child in tree.children:
        check_order(child, role)
    if not isinstance(tree, Stack) or tree.order == "any":
        return
    for place, child in enumerate(tree.children):
        above = next((name for name in leaves(child) if role(name) == LANGUAGE), None)
        before = tree.children[:place]
        below = next((name for one in before for name in leaves(one) if role(name) == TASK), None)
        if above is not None and below is not None:
            others = [*before, *tree.children[place + 1 :]]
            first = next(at for at, one in enumerate(others) if any(role(name) == TASK for name in leaves(one)))
            meant = Stack(*others[:first], child, *others[first:])
            raise CompositionError(
                f"{show(tree)}: {above} is a language adapter and {below}, below it, a task adapter; a task adapter "
                f"reads what a language adapter made of the text, so write {show(meant)}, or "
                f"{show(Stack(*tree.children, order='any'))} where this order is meant"
            )
