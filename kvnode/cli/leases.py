"""`kvnode lease`: a time to live that keys share."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from kvnode.cli.calls import call, connected, output_option, print_json
from kvnode.cli.columns import print_rows
from kvnode.cli.command import Group

if TYPE_CHECKING:
    from kvnode.client import Client, Lease

id_argument = click.argument("lease_id", metavar="ID", type=click.IntRange(1))


@click.group(cls=Group)
def lease() -> None:
    """Grant, renew, revoke, show or list leases: a time to live that keys share (put --lease ID)."""


@lease.command()
@click.argument("ttl_s", metavar="SECONDS", type=click.IntRange(1))
@output_option
@connected
def grant(ttl_s: int, output: str, url: str, timeout_s: float) -> None:
    """Make a lease of so many SECONDS and print its id."""
    _print(call(url, timeout_s, lambda c: c.leases.grant(ttl_s)), output)


@lease.command()
@id_argument
@output_option
@connected
def keepalive(lease_id: int, output: str, url: str, timeout_s: float) -> None:
    """Give the lease ID its whole time again, once."""
    _print(call(url, timeout_s, lambda c: c.leases.keep_alive(lease_id)), output)


@lease.command()
@id_argument
@output_option
@connected
def revoke(lease_id: int, output: str, url: str, timeout_s: float) -> None:
    """End the lease ID now and delete its keys; prints how many."""
    deleted = call(url, timeout_s, lambda c: c.leases.revoke(lease_id))
    if output == "json":
        print_json({"id": lease_id, "deleted": deleted})
    else:
        print(deleted)


@lease.command()
@id_argument
@output_option
@connected
def get(lease_id: int, output: str, url: str, timeout_s: float) -> None:
    """Show the lease ID: its ttl, what remains, and its first 1,000 keys, one a line."""
    found = call(url, timeout_s, lambda c: c.leases.get(lease_id))
    if output == "json":
        print_json(asdict(found))
        return
    print(f"{found.id}\t{found.ttl}\t{found.remaining}\t{found.key_count}")
    for key in found.keys:
        print(key)


@lease.command("list")
@output_option
@connected
def list_leases(output: str, url: str, timeout_s: float) -> None:
    """Print every lease: id, ttl and what remains of it in seconds, parted by tabs."""

    async def every(client: Client) -> list[Lease]:
        return [each async for each in client.leases.list()]

    found = call(url, timeout_s, every)
    if output == "json":
        print_json([{"id": each.id, "ttl": each.ttl, "remaining": each.remaining} for each in found])
    else:
        print_rows(("id", "ttl", "remaining"), [(str(each.id), str(each.ttl), str(each.remaining)) for each in found])


def _print(lease: Lease, output: str) -> None:
    if output == "json":
        print_json({"id": lease.id, "ttl": lease.ttl, "remaining": lease.remaining})
    else:
        print(lease.id)
