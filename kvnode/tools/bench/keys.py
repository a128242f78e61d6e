"""The keys of a run: set before reads begin, and taken away again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from kvnode.client import Client, put
from kvnode.errors import KvnodeError
from kvnode.tools.bench.workload import KEY_DIGITS, Workload

FILL_KEYS: Final = 500
FILL_BYTES: Final = 2 * 1_048_576  # of values in one batch: a node takes 8 MiB of JSON
FILL_AT_ONCE: Final = 4
# Deleted together by a prefix, which is one entry and holds a node up: the digits of a key that may differ.
DELETED_DIGITS: Final = 3


async def fill(client: Client, workload: Workload, go_on: Callable[[], bool], step: Callable[[int], None]) -> None:
    """Sets every key, or as many as there are before `go_on` is false. Raises what the cluster refuses with."""
    size = max(1, min(FILL_KEYS, FILL_BYTES // max(1, workload.value_bytes)))
    starts = iter(range(0, workload.keys, size))

    async def writer() -> None:
        for start in starts:
            if not go_on():
                return
            numbers = range(start, min(start + size, workload.keys))
            for result in await client.batch([put(workload.key(number), workload.value) for number in numbers]):
                if isinstance(result, KvnodeError):
                    raise result
            step(len(numbers))

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(FILL_AT_ONCE):
                group.create_task(writer())
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None  # what the first was refused with ended the others


async def remove(client: Client, workload: Workload, step: Callable[[int], None]) -> int:
    """Deletes the run's keys, 1,000 at a time, so that nobody else's requests wait for long; how many there were."""
    deleted, each = 0, 10**DELETED_DIGITS
    for start in range(0, workload.keys, each):
        prefix = workload.root + f"{start:0{KEY_DIGITS}}"[:-DELETED_DIGITS]
        deleted += await client.delete_prefix(prefix)
        step(min(each, workload.keys - start))
    return deleted
