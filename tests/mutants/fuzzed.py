"""Small faults in the rooms of one node, each of which `make fuzz` alone must find: no test is asked.

Chosen before the first of them was tried. `docs/MUTANTS.md` says what became of each. Two have been replaced since, for
they break nothing. Half of an even number of voters is enough to confirm a read: it meets every majority (2 of 4 and 3
of 4 have one in common). And that a truncated entry still counts as durable concerns leaders alone, whose whole log was
durable before anybody heard of their candidacy.
"""

from __future__ import annotations

from tests.mutants.mutant import Mutant

_GUARD, _JOURNAL, _SEGMENTS = "kvnode/raft/guard.py", "kvnode/storage/journal.py", "kvnode/storage/segments.py"
_ROUNDS, _REPLICA = "kvnode/raft/read_rounds.py", "kvnode/raft/replica.py"
_WRITES, _PROPOSALS = "kvnode/node/writes.py", "kvnode/node/proposals.py"
_LEASES, _CATCHUP, _ENGINE = "kvnode/node/lease_clock.py", "kvnode/node/catchup.py", "kvnode/node/engine.py"
_DIALLING, _HANDSHAKE = "kvnode/peers/network.py", "kvnode/peers/handshake.py"

FUZZED = (
    # --- raft ---
    Mutant(
        "a vote counts as often as its frame arrives",
        _GUARD,
        "if term != self._core.term or (term, node.id) in self._votes or not self._core.is_member(node.id):",
        "if term != self._core.term or not self._core.is_member(node.id):",
    ),
    Mutant(
        "the term of an acknowledgement is not compared",
        _GUARD,
        "if term != core.term or not core.is_leader or not core.is_follower(node_id):",
        "if not core.is_leader or not core.is_follower(node_id):",
    ),
    Mutant(
        "a follower commits the end of its log unverified",
        _GUARD,
        '"commit_index": max(floor, verified),',
        '"commit_index": max(floor, verified, last),',
    ),
    Mutant(
        "a follower acknowledges the end of its log unverified",
        _GUARD,
        "self._reply = (verified + 1, True, False)",
        "self._reply = (max(verified, last) + 1, True, False)",
    ),
    Mutant(
        "a pre-vote needs one more than a majority",
        "kvnode/raft/election.py",
        "len(self._grants) >= (len(peers) + 1) // 2:",
        "len(self._grants) > (len(peers) + 1) // 2:",
    ),
    Mutant(
        "a learner counts among those that confirm a read",
        _GUARD,
        "        if core.rounds.in_flight and core.is_member(node_id):\n",
        "        if core.rounds.in_flight and core.is_follower(node_id):\n",
    ),
    Mutant(
        "a promise leaves one change before it is durable",
        "kvnode/raft/outbox.py",
        "self._held[0].mutation <= durable:",
        "self._held[0].mutation <= durable + 1:",
    ),
    Mutant(
        "a read joins the round that is in flight",
        _ROUNDS,
        "return self.number + 1\n",
        "return self.number + (not self.in_flight)\n",
    ),
    Mutant(
        "the echoes of one read round count in the next",
        _ROUNDS,
        "        self._echoes.clear()\n",
        "",
    ),
    Mutant(
        "a leader serves before its own term's entry is applied",
        _REPLICA,
        "return self.is_leader and noop is not None and self.applied_index >= noop",
        "return self.is_leader and noop is not None",
    ),
    Mutant(
        "a snapshot keeps a log that differs from it",
        _REPLICA,
        "if self.journal.term_at(index) == term:",
        "if self.journal.term_at(index) is not None:",
    ),
    Mutant(
        "a change of members does not wait for the one before it",
        _REPLICA,
        "return self.serving and self.roster.current.index <= self.applied_index",
        "return self.serving",
    ),
    Mutant(
        "the repair of a log begins one entry late",
        "kvnode/raft/progress.py",
        "progress.next = max(1, min(next_index, self._journal[-1][1] + 1))",
        "progress.next = max(1, min(next_index + 1, self._journal[-1][1] + 1))",
    ),
    Mutant(
        "a configuration counts one entry late",
        "kvnode/raft/membership.py",
        "if position <= index:",
        "if position < index:",
    ),
    # --- storage ---
    Mutant(
        "a small write is not synced",
        _SEGMENTS,
        "        if sync:\n            self.sync()",
        "        if sync and len(buffers) > 3:\n            self.sync()",
    ),
    Mutant(
        "what was written during a sync counts as durable",
        _JOURNAL,
        "self.durable_mutation = flight.mutation",
        "self.durable_mutation = self.mutation",
    ),
    Mutant(
        "what the kernel alone has is promised after a restart",
        _SEGMENTS,
        "            self._disk.settle(names[-1])  # those before it were synced when it was begun\n",
        "",
    ),
    Mutant(
        "a new segment does not repeat term and vote",
        _SEGMENTS,
        'buffers = [head + zlib.crc32(head).to_bytes(4, "little"), state]',
        'buffers = [head + zlib.crc32(head).to_bytes(4, "little")]',
    ),
    Mutant(
        "the segment that holds the first entry goes",
        _SEGMENTS,
        "self._segments[0].last_index < first_index:",
        "self._segments[0].last_index <= first_index:",
    ),
    Mutant(
        "a snapshot is published before it is synced",
        "kvnode/storage/snapshots.py",
        "        self.disk.sync(part)\n        self.disk.rename(part, name)",
        "        self.disk.rename(part, name)",
    ),
    Mutant(
        "a truncation is replayed one entry too far behind",
        _SEGMENTS,
        "del entries[max(0, index - entries[0][1]) :]",
        "del entries[max(0, index - entries[0][1] + 1) :]",
    ),
    Mutant(
        "damage below the mark is taken for a crash's tail",
        "kvnode/storage/tail.py",
        "if durable_bytes > end:",
        "if durable_bytes > len(data):",
    ),
    Mutant(
        "the identity is not synced",
        "kvnode/storage/identity.py",
        "    disk.sync(part)\n",
        "",
    ),
    Mutant(
        "an error of the disk is passed over",
        "kvnode/storage/flusher.py",
        "            self._loop.call_soon_threadsafe(self._failed, fatal)\n            return False",
        "            return bool(fatal)",
    ),
    # --- peers ---
    Mutant(
        "the tag of a frame is not compared",
        "kvnode/peers/frames.py",
        "            if not compare_digest(state.digest(), data[last:start]):\n",
        "            if False:\n",
    ),
    Mutant(
        "a dial has no deadline",
        _DIALLING,
        "async with asyncio.timeout(DIAL_DEADLINE_S):",
        "async with asyncio.timeout(None):",
    ),
    Mutant(
        "a handshake has no deadline",
        _DIALLING,
        "async with asyncio.timeout(handshake.DEADLINE_S):",
        "async with asyncio.timeout(None):",
    ),
    Mutant(
        "who is dialled by a voter that has forgotten lets it in",
        _HANDSHAKE,
        "        me.meet(self._node_id, directory_id, fresh)\n",
        "",
    ),
    Mutant(
        "who dials a voter that has forgotten talks to it",
        _HANDSHAKE,
        "            self._me.meet(self._peer_id, directory_id, fresh)\n",
        "            pass\n",
    ),
    Mutant(
        "a connection that a bad frame has ended stays open",
        "kvnode/peers/connections.py",
        "            self.refuse(\n"
        '                handshake.PeerRefused(f"it sent what no node of this cluster sends '
        '({str(error)[:-1]})", kind=kind)\n'
        "            )\n",
        "            del kind, error\n",
    ),
    # --- node ---
    Mutant(
        "a lease ends in the tick before its end",
        _LEASES,
        "self._file_at(lease_id, int(ends / TICK_S) + 1)",
        "self._file_at(lease_id, int(ends / TICK_S))",
    ),
    Mutant(
        "a leader goes on with the times of its last leadership",
        _LEASES,
        "        self._ticks, self._ends, self._due = Table(), Table(), {}\n",
        "",
    ),
    Mutant(
        "an expiry names another restore, and ends nothing",
        _LEASES,
        "Expire(tuple(over), self._store.leases.generation)",
        "Expire(tuple(over), self._store.leases.generation + 1)",
    ),
    Mutant(
        "a question that was lost is not repeated",
        "kvnode/node/questions.py",
        "elif now - question.sent_at >= AGAIN_S:",
        "elif now < question.sent_at:",
    ),
    Mutant(
        "a forwarded group is taken as often as it comes",
        _WRITES,
        "        if sequence in verdicts:\n",
        "        if sequence < 0:\n",
    ),
    Mutant(
        "what was forwarded is proposed in a later term as well",
        _WRITES,
        "        self._forwarders.clear()\n        self._forwarded.clear()\n        self._forwarded_bytes = 0\n",
        "",
    ),
    Mutant(
        "a group of the present term is sent again",
        _PROPOSALS,
        "reversed(self._sent.items()) if group.term < term]",
        "reversed(self._sent.items()) if group.term <= term]",
    ),
    Mutant(
        "what is in doubt is told as certain",
        _PROPOSALS,
        '                OutcomeUnknown(\n                    "The write was proposed',
        '                NoLeader(\n                    "The write was proposed',
    ),
    Mutant(
        "a snapshot leaves doubts as they were",
        _ENGINE,
        "        self.proposals.skipped()\n",
        "",
    ),
    Mutant(
        "a leader gives a follower an index without a majority",
        "kvnode/node/read_index.py",
        "self.confirm(self._answer_timeout_s).add_done_callback(answer)",
        "self._network.send(node_id, (messages.READ_ANSWER, number, int(self._replica.raftCommitIndex)))",
    ),
    Mutant(
        "a read does not wait until its index is applied",
        "kvnode/node/group.py",
        "return index is not None and self._engine is not None and index <= self._engine.replica.applied_index",
        "return index is not None and self._engine is not None",
    ),
    Mutant(
        "each new leader makes another session key",
        "kvnode/node/session_key.py",
        "if not replicated.number and self._proposed_in != term:",
        "if self._proposed_in != term:",
    ),
    Mutant(
        "a transfer that failed leaves the leader closed",
        "kvnode/node/transfer.py",
        "engine.writes.transferring, self._began_at = False, None",
        "engine.writes.transferring, self._began_at = replica.is_leader, None",
    ),
    Mutant(
        "the last node that is ready drains as well",
        "kvnode/node/drain.py",
        "if force or _READY in others:",
        "if force or others is not None:",
    ),
    Mutant(
        "a snapshot says that it holds what is not applied yet",
        "kvnode/node/compaction.py",
        "index = replica.applied_index",
        "index = replica.raftCommitIndex",
    ),
    Mutant(
        "the feature level is that of the newest member",
        "kvnode/node/feature_level.py",
        "known = min([self._network.me.level, *(",
        "known = max([0, *(",
    ),
    Mutant(
        "a snapshot that is older than the log is installed",
        _CATCHUP,
        "elif result is not None and result[0].index > self._receiver.committed_floor:",
        "elif result is not None:",
    ),
    Mutant(
        "a fetch that stalled is not gone on with",
        _CATCHUP,
        "elif fetch.writing or (fetch.source == node_id and now - fetch.heard_at < STALLED_S):",
        "elif fetch.have_bytes < fetch.size_bytes:",
    ),
    Mutant(
        "a write waits three times as long as it may",
        "kvnode/node/group.py",
        "engine.writes.submit(command, future, engine.clock() + left_s, request_ids.request_id.get())",
        "engine.writes.submit(command, future, engine.clock() + 3 * left_s, request_ids.request_id.get())",
    ),
    Mutant(
        "a watch is not told that a snapshot took events away",
        _ENGINE,
        "        self._watches.skipped()\n",
        "",
    ),
)
