"""kvnode: a Raft-replicated key-value node, made to stand behind a load balancer.

The map of rooms, from the inside out. Imports run upwards on this page only, and
`tests/test_architecture.py` holds them:

    errors.py      every failure, definite or indefinite
    limits.py      every limit of what may enter the state machine
    commands.py    the commands of the state machine and their one encoding
    entries.py     how commands travel: groups, and the payload of a Raft entry
    results.py     what the state machine answers
    items.py       one key's value, packed
    outcomes.py    what became of each write that carried an idempotency key, for a bounded window
    leases.py      leases: a time to live that keys share
    tokens.py      access tokens: what is replicated of them
    session.py     the session key, and what is signed with it
    ended_sessions.py  sessions that were ended before their time
    staging.py     a backup that is restored in pieces, as far as it has come
    transactions.py  compare, then one of two branches, in one revision
    table.py       a mapping that is read as it was while it changes
    view.py        the store at one revision: what a snapshot writes and reads
    store.py       KeyValueStore: the state machine; pure, total, deterministic
    changes.py     what the store notes of each change
    watch/         who watches what on one node: the newest history, audiences and their watchers
    meters.py      what a node counts about itself: plain numbers
    metrics/       the page of them, for Prometheus
    trace.py       the id of the request that is being carried out
    deadline.py    how long the sender of that request waits
    config.py      one frozen Config from flags, environment and file; security.py, tls.py: who is let in
    raft/          the only rooms that know PySyncObj; `raft/group.py` is their face, `raft/status.py` their news
    http/          the API: routes and the one error table (`app.py`), probes, keys, watches, administration
    reception.py   where connections come in; front.py: a node's HTTP listeners
    server.py      builds, starts, drains and stops one node
    client/        the Python client, with and without an event loop: retries only what is definite or idempotent
    doctor/        what is wrong with a machine, a node's options, a cluster
    bench/         load on a cluster, and what it takes
    cli/           serve, dev and the client commands
"""

from __future__ import annotations

from typing import Final

__version__: Final = "0.2.0"
