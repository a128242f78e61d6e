"""Leases, as `Client.leases`: a time to live that keys share, and that somebody has to renew."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from kvnode.client.answers import parsed, shaped
from kvnode.client.calls import ATTEMPT_S, JSON, Calls, json_bytes, once
from kvnode.client.misuse import whole


@dataclass(frozen=True, slots=True)
class Lease:
    """`ttl` and `remaining` in whole seconds; what remains is known on the leader, elsewhere it is the ttl.

    `keys` are the first 1,000 of `key_count`: filled by `get` alone.
    """

    id: int
    ttl: int
    remaining: int
    keys: tuple[str, ...] = ()
    key_count: int = 0


class Leases:
    """Grants, renews and ends leases. Every call raises LeaseNotFound where there is no such lease (any more)."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def grant(self, ttl_s: int) -> Lease:
        """A new lease of `ttl_s` whole seconds. Raises TooManyLeases."""
        headers, data = {**JSON, **once(None)}, json_bytes({"ttl": whole("ttl_s", ttl_s)})
        return _lease(parsed(await self._calls.call("POST", "/v1/leases", headers, data)))

    async def keep_alive(self, lease_id: int, *, attempt_s: float = ATTEMPT_S) -> Lease:
        """The whole ttl is before the lease again; once. A node that does not answer gets `attempt_s`."""
        path = f"/v1/leases/{whole('The id of a lease', lease_id)}/keepalive"
        return _lease(parsed(await self._calls.call("POST", path, once(None), attempt_s=attempt_s)))

    async def revoke(self, lease_id: int) -> int:
        """Ends the lease and deletes its keys in one revision; returns how many."""
        body = parsed(
            await self._calls.call("DELETE", f"/v1/leases/{whole('The id of a lease', lease_id)}", once(None))
        )
        return shaped(lambda: int(body["deleted"]))

    async def get(self, lease_id: int) -> Lease:
        return _lease(parsed(await self._calls.call("GET", f"/v1/leases/{whole('The id of a lease', lease_id)}")))

    async def list(self) -> AsyncIterator[Lease]:
        """Every lease, in the order of their ids."""
        cursor = ""
        while True:
            query = f"?cursor={cursor}" if cursor else ""
            page = parsed(await self._calls.call("GET", f"/v1/leases{query}"))
            for each in shaped(lambda page=page: list(page["leases"])):  # type: ignore[misc]
                yield _lease(each)
            cursor = page.get("cursor", "")
            if not cursor:
                return


def _lease(body: dict[str, Any]) -> Lease:
    return shaped(
        lambda: Lease(body["id"], body["ttl"], body["remaining"], tuple(body.get("keys", ())), body.get("key_count", 0))
    )
