"""`kvnode recover`: a cluster of one out of what one node holds, when the majority will not come back."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import click

from kvnode.cli.calls import fail, output_option, print_json
from kvnode.cli.command import Command, directory
from kvnode.errors import StartupError


@click.command(cls=Command)
@click.option(
    "--data-dir", required=True, callback=directory, metavar="DIR", help="The directory of a node that is stopped."
)
@click.option("--force-new-cluster", is_flag=True, help="Yes: the majority of the old cluster is lost for good.")
@click.option("--skip-entry", type=click.IntRange(2), metavar="INDEX",
              help="Leave out this entry of the log, which cannot be applied: 'kvnode verify' names it.")  # fmt: skip
@output_option
def recover(data_dir: Path, force_new_cluster: bool, skip_entry: int | None, output: str) -> None:
    """Make a cluster of one node of what this node holds, with a new cluster id. The node must be stopped.

    For when a majority of the members is lost and will not come back: writes that only those held are lost. The old
    directory is kept beside the new one. Revisions and ids of leases begin far above the old ones, so that none is
    given twice: a watch from before hears that it is compacted. Other members that still exist must be started with an
    empty --data-dir and --join afterwards; as they are, they belong to the old cluster and are refused.

    --skip-entry also gets a cluster out of an entry that no node can apply. All writes of that entry are left out. It
    needs no --force-new-cluster, because it is refused unless the entry is poisoned.
    """
    if not force_new_cluster and skip_entry is None:
        print(
            "kvnode: This gives up all that the other members hold and this one does not; while a majority can still "
            "be brought back, bring it back. If it is lost for good, say --force-new-cluster.",
            file=sys.stderr,
        )
        raise SystemExit(2)
    from kvnode.storage.recover import recover as recover_directory  # the Raft core, which no other command needs

    try:
        done = recover_directory(data_dir, skip_entry)
    except StartupError as e:
        fail(e.message)
    except OSError as e:
        fail(f"{data_dir} could not be recovered ({e.strerror}); it is as it was.")
    if output == "json":
        print_json({**asdict(done), "cluster_id": done.cluster_id.hex(), "kept": str(done.kept)})
        return
    print(f"node        {done.node_id}, the only member of cluster {done.cluster_id.hex()}")
    print(f"state       entry {done.index}, revision {done.revision}: {done.leap} above what it held, {done.keys} keys")
    if done.skipped is not None:
        print(f"left out    {done.skipped} (commands: {done.skipped.commands})")
    if done.salvaged is not None:
        print(f"salvaged    {done.salvaged.mended} items begin anew, {done.salvaged.left_out} could not be kept")
    print(f"before      {done.kept}")
    if done.former:
        names = " ".join(done.former)
        print(f"left behind {names}: start each with an empty --data-dir and --join, never with its old one")
