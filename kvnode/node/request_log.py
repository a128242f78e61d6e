"""Which requests the writes belong to that a follower forwards: told beside the group, for the leader's log alone.

Sent only where a client gave its request an id, or its node logs requests. Nothing depends on whether it arrives.
"""

from __future__ import annotations

import logging

from kvnode.logs import request_ids
from kvnode.raft.messages import Message


def forwarded_requests(node_id: str, message: Message) -> None:
    """REQUESTS of a peer: one line for each, where requests are logged."""
    if not request_ids.log.isEnabledFor(logging.INFO):
        return
    for request_id in message[1]:
        if isinstance(request_id, str) and request_ids.accepted(request_id):
            fields = {"event": "forwarded", "request_id": request_id, "from": node_id}
            request_ids.log.info("Took the write of request %s from %s.", request_id, node_id, extra={"fields": fields})
