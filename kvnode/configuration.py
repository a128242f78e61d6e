"""Who belongs to the group: the configuration, as an entry of the log holds it.

An entry holds all members, not what has changed, so nothing has to be undone or replayed in order. It counts from the
moment it is appended (Raft §6, dissertation §4.1) and no longer once it is truncated: what counts is always the last
one in the log and, where the log holds none, the one below it, of the snapshot or of the first cluster. Consecutive
configurations differ by one member at most, so any two majorities of voters share a node.

A learner is sent everything and counts for nothing. `since` is the index of the entry that added a member: a name
that was removed and added again is another member, whose old data must not speak for it.

PySyncObj's own membership commands are never used: they are applied as changes, again after a restart, which brings
removed members back; two can be under way at once (quirk R5); they know no learners; and the removed one is not told.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal

import msgpack

MEMBERS_MAX: Final = 9  # seven voters, and two that are coming or going
VOTERS_MAX: Final = 7
PACKED_BYTES_MAX: Final = 6_144  # a handshake carries it
HTTP_URL_CHARS_MAX: Final = 256

CONFIGURATION: Final = 4  # the first byte of a log entry that holds one; PySyncObj's own kinds are 0 to 3

Role = Literal["leader", "follower", "candidate", "learner"]

_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Member:
    """`address` is where Raft dials it. `wanted`: a learner that is to vote as soon as it has caught up."""

    node_id: str
    address: tuple[str, int]
    http_url: str = ""
    voter: bool = True
    wanted: bool = False
    since: int = 0

    @property
    def shown_address(self) -> str:
        host, port = self.address
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@dataclass(frozen=True)
class Configuration:
    """All members, as of the log's entry `index`; 0 is that of the first cluster, which no entry holds."""

    index: int
    members: Mapping[str, Member]

    @cached_property
    def voters(self) -> frozenset[str]:
        return frozenset(node_id for node_id, member in self.members.items() if member.voter)

    @cached_property
    def learners(self) -> frozenset[str]:
        return frozenset(self.members) - self.voters

    def having(self, member: Member, index: int) -> Configuration:
        """With this member, new or in place of the one of its name, by the entry `index`."""
        return Configuration(index, {**self.members, member.node_id: member})

    def lacking(self, node_id: str, index: int) -> Configuration:
        return Configuration(index, {name: member for name, member in self.members.items() if name != node_id})

    def fields(self) -> list[Any]:
        return [
            _VERSION,
            [
                [m.node_id, m.address[0], m.address[1], m.http_url, m.voter, m.wanted, m.since]
                for _, m in sorted(self.members.items())
            ],
        ]

    @property
    def command(self) -> bytes:
        """The log's entry."""
        return bytes((CONFIGURATION,)) + _pack(self.fields())

    @property
    def packed(self) -> bytes:
        """For a peer, a snapshot or a file: the same with its index."""
        return _pack([self.index, *self.fields()])


def first_cluster(peers: Mapping[str, tuple[str, int]]) -> Configuration:
    """What all members of a first cluster are started with alike."""
    return Configuration(0, {node_id: Member(node_id, address) for node_id, address in peers.items()})


def named(*node_ids: str) -> Configuration:
    """Voters whose addresses are not known: all that snapshots said before they held configurations."""
    return first_cluster(dict.fromkeys(node_ids, ("", 0)))


def of_entry(index: int, command: bytes) -> Configuration:
    return _configuration([index, *_unpack(command[1:])])


def unpacked(data: bytes) -> Configuration:
    """Raises ValueError for what no node of this version has packed."""
    return _configuration(_unpack(data))


def _configuration(fields: list[Any]) -> Configuration:
    try:
        index, version, rows = fields
        if version != _VERSION or type(index) is not int:
            raise ValueError("another version")
        members = {
            node_id: Member(node_id, (host, port), http_url, voter, wanted, since)
            for node_id, host, port, http_url, voter, wanted, since in rows
        }
    except (TypeError, ValueError) as error:
        raise ValueError("A list of the cluster's members is not of this version: upgrade this node.") from error
    return Configuration(index, members)


def _pack(fields: list[Any]) -> bytes:
    packed: bytes = msgpack.packb(fields, use_bin_type=True)
    return packed


def _unpack(data: bytes) -> list[Any]:
    try:
        fields = msgpack.unpackb(data, use_list=True, max_ext_len=0)
    except (ValueError, msgpack.exceptions.UnpackException) as error:
        raise ValueError("A list of the cluster's members is not msgpack.") from error
    return fields if isinstance(fields, list) else []
