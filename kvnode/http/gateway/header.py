"""The header of every answer of etcd's gateway: which cluster, which member, at which revision, in which term.

etcd names clusters and members by numbers of 64 bits. Here they are hashes of the cluster's id and the node's name,
below 2^63 since some clients read them with a sign.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Final

from kvnode.errors import Starting, Unavailable
from kvnode.http.group import Group

LEVEL: Final = 1  # the feature level from which on the store does what etcd's does


def numbered(*names: str) -> int:
    """The number of a cluster, or of a member of it."""
    digest = blake2b("\0".join(names).encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1 or 1


class Headers:
    """Those of one node."""

    __slots__ = ("_group", "_newest", "_start", "_term", "_term_text", "_whole", "cluster_id")

    def __init__(self, group: Group) -> None:
        self._group = group
        self.cluster_id = ""
        self._start = ""
        self._term, self._term_text = 0, ""
        self._whole = b""
        self._newest = 0

    def check_ready(self) -> None:
        """Raises Starting or Unavailable (definite) where the node cannot answer for etcd yet."""
        if self._group.store.level < LEVEL:
            if not self._group.status().started:
                raise Starting("This node is still loading its data; send the request again, here or elsewhere.")
            raise Unavailable("The cluster has members of an older version: etcd's API is there once all are upgraded.")

    def of(self, revision: int) -> str:
        """`{"cluster_id":…}` at that revision; without one where it is 0."""
        if not self.cluster_id:
            self._know()
        term = self._group.leader()[1]
        if term != self._term:
            self._term, self._term_text = term, f',"raft_term":"{term}"}}'
            self._whole = b""
        if revision > self._newest:
            self._newest = revision
        if not revision:
            return self._start + (self._term_text or "}")
        return f'{self._start},"revision":"{revision}"{self._term_text or "}"}'

    def alone(self, revision: int) -> bytes:
        """A message that is nothing but its header, as most writes are answered."""
        if self._group.leader()[1] != self._term or not self._whole or not revision:
            whole = f'{{"header":{self.of(revision)}}}'.encode()
            if revision:
                self._whole = whole.replace(b'"revision":"%d"' % revision, b'"revision":"%d"')
            return whole
        if revision > self._newest:
            self._newest = revision
        return self._whole % revision

    @property
    def revision(self) -> int:
        """The newest that this node knows of: its store's, or that of an outcome which it has not applied yet.

        For answers that show no keys; a reader of keys must not be told a revision that is ahead of them.
        """
        return max(self._group.store.revision, self._newest)

    def present(self) -> str:
        return self.of(self.revision)

    def member_id(self, node_id: str) -> int:
        if not self.cluster_id:
            self._know()
        return numbered(self.cluster_id, node_id)

    def _know(self) -> None:
        status = self._group.status()
        start = f'{{"cluster_id":"{numbered(status.cluster_id)}"'
        self._start = f'{start},"member_id":"{numbered(status.cluster_id, status.node_id)}"'
        self.cluster_id = status.cluster_id
