"""The log behind a snapshot, applied offline, and the entries of it that cannot be applied.

An entry is poisoned if a command in it breaks a limit (`kvnode/state/limits.py`) or makes the state machine fail. Every
node of this version answers such a command as invalid and applies the next one. A node of 0.1.0 ends at it, at each
start again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from kvnode.state.commands import ETCD_TXN, REPLACE, TXN, command_fault
from kvnode.state.entries import decode_entry
from kvnode.state.etcd_requests import transaction_fault as etcd_fault
from kvnode.state.results import Invalid
from kvnode.state.store import KeyValueStore
from kvnode.state.transactions import transaction_fault
from kvnode.storage.journal import Journal
from kvnode.storage.records import REGULAR

POISONED_SHOWN: Final = 100  # of one log; `verify` again after mending these
_EMPTY: Final = (b"", b"\x90")


@dataclass(frozen=True, slots=True)
class Poisoned:
    """An entry of the log that cannot be applied, and why; `commands` are all that it holds, sound ones too."""

    index: int
    what: str
    commands: int

    def __str__(self) -> str:
        return f"entry {self.index}: {self.what}"


def replay(store: KeyValueStore, journal: Journal, applied: int, skip: int | None = None) -> list[Poisoned]:
    """Applies to `store` everything behind the entry `applied`, but for the entry `skip`; what of it is poisoned."""
    poisoned: list[Poisoned] = []
    for command, index, _ in journal[applied + 1 - journal[0][1] :] if len(journal) else ():
        if command[0] == REGULAR and index > applied and index != skip:
            fault = _apply(store, command[1:])
            if fault is not None and len(poisoned) < POISONED_SHOWN:
                poisoned.append(Poisoned(index, *fault))
    return poisoned


def _apply(store: KeyValueStore, payload: bytes) -> tuple[str, int] | None:
    """The first thing that is wrong with an entry, and how many commands it holds."""
    groups, fault = decode_entry(payload), None
    commands = [command for _, _, commands in groups for command in commands]
    if not groups and payload not in _EMPTY:
        fault = "it is no group of commands"
    for command in commands:
        try:
            what = _fault(store, command)
        except MemoryError:
            what = "this machine has not the memory to apply it"
        fault = fault or what
    return None if fault is None else (fault, len(commands))


def _fault(store: KeyValueStore, command: Any) -> str | None:
    fault = command_fault(command)
    if fault is None and command[0] == TXN:
        fault = transaction_fault(command)
    if fault is None and command[0] == ETCD_TXN:
        fault = etcd_fault(command)
    result = store.apply(command)
    if store.failures:
        kind = type(store.failures[0]).__name__
        store.failures.clear()
        return f"the state machine fails at it ({kind})"
    if fault is None and isinstance(result, Invalid) and command[0] == REPLACE:
        fault = result.reason
    return fault
