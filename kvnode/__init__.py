"""kvnode: a Raft-replicated key-value node, made to stand behind a load balancer.

The rooms, from the inside out; `tests/test_architecture.py` holds which one may import which:

    errors.py      every failure, definite or indefinite
    state/         the replicated state machine, pure: commands, results, the store, leases, transactions,
                   idempotency, tokens, session keys, and every limit of what may enter it
    raft/          consensus: the only room that knows PySyncObj
    storage/       the disk: journal, snapshots, identity; offline: verify, recover, restore, backup files
    peers/         the wire between nodes: frames, handshake, connections
    node/          one running member: proposals, reads, transfer, catch-up, lease clock, divergence check, status
    watch/         who watches what on one node
    net/           what every listener needs: accepting, TLS, proxies' word on who the client is
    logs/          log lines: their writer, their bounds, the id of the request that they belong to
    metrics/       what a node counts about itself, and the page of it
    config/        a node's options, their layers and checks
    http/          the API: routes and the one error table (`app.py`), probes, keys, watches, administration
    server/        composition root: builds, starts, drains and stops one node
    client/        the Python client, with and without an event loop: retries only what is definite or idempotent
    tools/         `doctor`: what is wrong with a machine or a cluster; `bench`: load on a cluster
    cli/           serve, dev and the client commands

    configuration.py  who belongs to the group
    deadline.py    how long the sender of the present request waits
"""

from __future__ import annotations

from typing import Final

__version__: Final = "0.2.0"
