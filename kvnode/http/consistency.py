"""What `?consistency` asks of a read, on every node."""

from __future__ import annotations

from kvnode.errors import BadRequest, Starting
from kvnode.http.group import Group
from kvnode.http.paths import Query


async def consistency(group: Group, parameters: Query) -> bytes:
    """Waits for what `?consistency` asks; returns the header lines that say how stale the answer may be."""
    wanted = parameters.get("consistency", "linearizable")
    if wanted == "linearizable":
        await group.read_barrier()
        return b""
    if wanted != "stale":
        raise BadRequest("The query parameter 'consistency' is 'linearizable' or 'stale'.")
    return stale(group)


def stale(group: Group) -> bytes:
    """The header line of a read from what this node has now. Raises Starting."""
    lag = group.applied_lag()
    if lag is None:
        # What is in memory now is not an old state of the store but a part of one.
        raise Starting("This node is still loading its data; send the request again, here or elsewhere.")
    return b"Kvnode-Applied-Lag: %d\r\n" % lag
