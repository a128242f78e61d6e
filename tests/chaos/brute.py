"""The same question answered by trying everything, for histories of a few operations: what the checker is checked by.

It shares nothing with the checker's search or its model of a key: every choice of unknown writes, every order of
them all, and then the arithmetic of the revisions in hindsight.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, permutations

from tests.chaos.history import ABSENT, Operation


def is_linearizable(history: Sequence[Operation]) -> bool:
    """One key's operations, nine at most; `failed` ones left out already."""
    certain = [operation for operation in history if operation.certain]
    unknown = [operation for operation in history if not operation.certain]
    return any(
        _in_time(order) and _fits(order)
        for count in range(len(unknown) + 1)
        for chosen in combinations(unknown, count)
        for order in permutations([*certain, *chosen])
    )


def _in_time(order: Sequence[Operation]) -> bool:
    return not any(later.ended < earlier.began for i, earlier in enumerate(order) for later in order[i + 1 :])


def _fits(order: Sequence[Operation]) -> bool:
    """Plays the order through; what is learned of a change's revision is kept with the change, to be added up after."""
    value: str | None = None
    changes: list[int | None] = []  # the revision of each change, where anything tells it

    def names(revision: int) -> bool:
        """The key can be at this revision now."""
        if revision == ABSENT or value is None:
            return revision == ABSENT and value is None
        changes[-1] = revision if changes[-1] is None else changes[-1]
        return changes[-1] == revision

    for operation in order:
        if operation.outcome == "refused":
            if operation.revision is None or operation.revision == operation.expect or not names(operation.revision):
                return False
        elif operation.kind == "get":
            if operation.found != value or operation.revision is None or not names(operation.revision):
                return False
        else:
            if operation.expect is not None and not names(operation.expect):
                return False
            if operation.kind == "delete" and value is None:
                return False
            value = operation.value if operation.kind == "put" else None
            changes.append(operation.revision)
    reached = 0
    for known in changes:
        if known is not None and known <= reached:
            return False
        reached = reached + 1 if known is None else known
    return True
