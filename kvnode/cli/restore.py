"""`kvnode restore`: what a backup holds, in a running cluster or as a new one."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from kvnode.cli.calls import call, connected, fail, output_option, print_json
from kvnode.cli.command import Command, directory
from kvnode.config import values
from kvnode.errors import StartupError
from kvnode.storage import backup
from kvnode.storage.restore import LEAP, LEAP_MAX
from kvnode.storage.restore import restore as restore_directory


@click.command(cls=Command)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--data-dir", callback=directory, metavar="DIR", help="Offline: made by this.")
@click.option("--yes", is_flag=True, help="Do not ask before the keys of a running cluster are replaced.")
@click.option("--node-id", default="n1", show_default=True, help="The name of the node that is to start on it.")
@click.option("--raft", default="127.0.0.1:7001", show_default=True, metavar="HOST:PORT", help="Where others dial it.")
@click.option("--advertise-http", metavar="URL", default="", help="How others reach its HTTP [default: its own].")
@click.option("--revision-leap", type=click.IntRange(0, LEAP_MAX), default=LEAP, show_default=True,
              help="How far above the backup's revision and lease ids the cluster begins.")  # fmt: skip
@output_option
@connected
def restore(
    file: Path, data_dir: Path | None, yes: bool, node_id: str, raft: str, advertise_http: str, revision_leap: int,
    output: str, url: str, timeout_s: float,
) -> None:  # fmt: skip
    """Have a running cluster hold what the backup FILE holds, and nothing else; or, with --data-dir, make a new one.

    Running: all keys and leases are replaced in one revision, above all that were. A large one takes a while: give
    it a --timeout of up to 600 seconds.

    --data-dir: offline, no running cluster is changed. It makes the directory for the first node of a new cluster, of
    any size; start it there, then further nodes with an empty --data-dir and --join.

    A file that is not whole is refused before anything is written.
    """
    if data_dir is None:
        _into_running(file, yes, output, url, timeout_s)
        return
    try:
        values.name(node_id)
        address = values.host_port(raft)
        url = values.base_url(advertise_http) if advertise_http else ""
    except values.Malformed as problem:
        raise click.UsageError(f"{problem}") from None
    try:
        head, store = backup.load(file)
        revision = head.revision + revision_leap
        cluster_id = restore_directory(data_dir, node_id, address, url, store, revision_leap)
    except backup.Damaged as damage:
        fail(f"{file} is no whole backup ({damage}): nothing was written; use another one.")
    except StartupError as e:
        fail(e.message)
    except OSError as e:
        where = e.filename or data_dir
        fail(
            f"{where} cannot be read or written ({e.strerror}); nothing was restored.",
            2 if isinstance(e, FileNotFoundError) and not file.exists() else 1,
        )
    if output == "json":
        print_json({"node_id": node_id, "cluster_id": cluster_id.hex(), "revision": revision, "items": head.items})
        return
    print(f"node        {node_id}, the only member of the new cluster {cluster_id.hex()}")
    print(f"state       items: {head.items}, revision {revision}: {revision_leap} above the backup's {head.revision}")
    print(f"next        kvnode serve --node-id {node_id} --raft {raft} --data-dir {data_dir} …")
    print("            then further nodes, each with an empty --data-dir and --join")


def _into_running(file: Path, yes: bool, output: str, url: str, timeout_s: float) -> None:
    try:
        head, data = backup.load(file)[0], file.read_bytes()
    except backup.Damaged as damage:
        fail(f"{file} is no whole backup ({damage}): nothing was restored; use another one.")
    except OSError as e:
        fail(f"{file} cannot be read ({e.strerror}); nothing was restored.", 2)
    if not yes and sys.stdin.isatty():
        question = f"Replace all keys of the cluster at {url} by the {head.items} of revision {head.revision}?"
        click.confirm(question, abort=True)
    body = call(url, timeout_s, lambda c: c.restore(data))
    if output == "json":
        print_json(body)
    else:
        print(f"items: {body['items']}, revision {body['revision']}, above the backup's {body['backup_revision']}")
