"""`kvnode restore`: a new cluster of one node that holds what a backup holds."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from kvnode import backup, values
from kvnode.cli.calls import output_option, print_json
from kvnode.errors import StartupError
from kvnode.raft.restore import LEAP, LEAP_MAX
from kvnode.raft.restore import restore as restore_directory


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--data-dir", required=True, type=click.Path(path_type=Path), metavar="DIR", help="Made by this.")
@click.option("--node-id", default="n1", show_default=True, help="The name of the node that is to start on it.")
@click.option("--raft", default="127.0.0.1:7001", show_default=True, metavar="HOST:PORT", help="Where others dial it.")
@click.option("--advertise-http", metavar="URL", default="", help="How others reach its HTTP [default: it tells them].")
@click.option("--revision-leap", type=click.IntRange(0, LEAP_MAX), default=LEAP, show_default=True,
              help="How far above the backup's revision the cluster begins.")  # fmt: skip
@output_option
def restore(
    file: Path, data_dir: Path, node_id: str, raft: str, advertise_http: str, revision_leap: int, output: str
) -> None:
    """Make a data directory for the first node of a new cluster, which holds what the backup FILE holds.

    Offline: nothing needs to run, and no running cluster is changed. A file that is not whole is refused before
    anything is written. Start the node on DIR, then its further nodes with an empty --data-dir and --join.
    """
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
        print(f"kvnode: {file} is no whole backup ({damage}): nothing was written; use another one.", file=sys.stderr)
        raise SystemExit(1) from None
    except StartupError as e:
        print(f"kvnode: {e.message}", file=sys.stderr)
        raise SystemExit(1) from None
    except OSError as e:
        where = e.filename or data_dir
        print(f"kvnode: {where} cannot be read or written ({e.strerror}); nothing was restored.", file=sys.stderr)
        raise SystemExit(2 if isinstance(e, FileNotFoundError) and not file.exists() else 1) from None
    if output == "json":
        print_json({"node_id": node_id, "cluster_id": cluster_id.hex(), "revision": revision, "items": head.items})
        return
    print(f"node        {node_id}, the only member of the new cluster {cluster_id.hex()}")
    print(f"state       items: {head.items}, revision {revision}: {revision_leap} above the backup's {head.revision}")
    print(f"next        kvnode serve --node-id {node_id} --raft {raft} --data-dir {data_dir} …")
    print("            then further nodes, each with an empty --data-dir and --join")
