"""How a node with an empty data directory becomes a member of a running cluster: `kvnode serve --join URL[,URL…]`.

It asks to be added, which changes nothing if it is a member already. The answer is written down with the cluster's id.
That is all it needs for the leader to find it; from then on --join is ignored.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, Final

from aiohttp import connector

from kvnode.client import Access, Client
from kvnode.config import values
from kvnode.config.values import HostPort
from kvnode.configuration import Configuration, Member
from kvnode.errors import Conflict, Indefinite, KvnodeError, StartupError, Unavailable
from kvnode.storage.identity import Invitation

log = logging.getLogger(__name__)

AGAIN_S: Final = 2.0
WITHIN_S: Final = 60.0  # for the cluster to answer: it may be starting as well


async def join(urls: Sequence[str], node_id: str, address: HostPort, http_url: str, access: Access) -> Invitation:
    """Raises StartupError where the cluster does not let the node in, or did not answer in time."""
    log.info("Asking %s to let this node in, for up to %d s.", ",".join(urls), WITHIN_S)
    if access.ca is None and any(url.startswith("https:") for url in urls):
        connector._SSL_CONTEXT_VERIFIED.load_default_certs()  # see kvnode/server/__init__.py
    try:
        async with Client(urls, WITHIN_S, access=access) as client:
            membership = await _asked(client, node_id, address, http_url)
    except (Unavailable, Indefinite) as e:
        raise StartupError(f"The cluster at {','.join(urls)} cannot be joined now: {e.message}") from None
    except KvnodeError as e:
        raise StartupError(f"The cluster at {','.join(urls)} does not let this node in: {e.message}") from None
    try:
        invitation = _invitation(membership)
    except (KeyError, TypeError, ValueError):
        raise StartupError(f"The answer of {','.join(urls)} is not a kvnode node's: check --join.") from None
    mine = invitation.configuration.members.get(node_id)
    if mine is None or mine.voter:
        raise StartupError(
            f"Node {node_id} is a voting member of that cluster already, and this --data-dir is empty: what it has "
            f"acknowledged is gone; 'kvnode member remove {node_id}' first, then start it again."
        )
    if mine.address != address:
        raise StartupError(
            f"The cluster knows {node_id} at {mine.shown_address}, and this node is dialled at "
            f"{values.show_host_port(address)}: correct --raft (or --advertise-raft), or remove and add the member."
        )
    log.info("Joining the cluster %s as a learner.", invitation.cluster_id.hex()[:12])
    return invitation


async def _asked(client: Client, node_id: str, address: HostPort, http_url: str) -> dict[str, Any]:
    """Who the members are, this node among them. The leader says so, which is never behind."""
    me = {"id": node_id, "raft": values.show_host_port(address), "http": http_url}
    clock = asyncio.get_running_loop().time
    deadline, conflicts = clock() + WITHIN_S, 0
    while True:
        try:
            return await client.change_members("POST", "", **me)
        except Conflict:
            conflicts += 1
            if conflicts > 1:
                raise
            await asyncio.sleep(AGAIN_S)  # another change is under way, mostly
        except Indefinite:  # asked once more, a leader says what became of it
            if clock() >= deadline:
                raise
            await asyncio.sleep(AGAIN_S)
        except KvnodeError as e:
            if e.code != "not_allowed":
                raise
            return await client.members()  # an operator has added it


def _invitation(membership: dict[str, Any]) -> Invitation:
    members = {
        each["id"]: Member(
            str(each["id"]), values.host_port(each["raft"]), each["http"] or "", each["role"] == "voter",
            bool(each["wanted"]), int(each["since"]),
        )
        for each in membership["members"]
    }  # fmt: skip
    return Invitation(bytes.fromhex(membership["cluster_id"]), Configuration(int(membership["index"]), members))
