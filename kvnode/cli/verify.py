"""`kvnode verify`: what a data directory or a backup holds, and whether it is whole, without a running node."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Final

import click

from kvnode.cli.calls import fail, output_option, print_json
from kvnode.cli.command import Command, directory
from kvnode.errors import StartupError
from kvnode.storage import backup
from kvnode.storage.verify import (
    NotADataDirectory,
    SegmentReport,
    SnapshotReport,
    VerifyReport,
    verify,
)

_POISONED: Final = (
    "this version answers it as invalid and goes on, 0.1.0 ends at it: start the node with this version, or leave the "
    "entry out with 'kvnode recover --skip-entry'."
)


@click.command("verify", cls=Command)
@click.argument("file", required=False)
@click.option("--data-dir", callback=directory, metavar="DIR", help="The directory that a node's --data-dir names.")
@output_option
def verify_command(file: str | None, data_dir: Path | None, output: str) -> None:
    """Read a node's journal and snapshots, or the backup FILE, and say whether they are whole.

    Nothing is changed. The node may be running; what it is writing at that moment shows as an unfinished tail.
    The log is also applied, in memory, as a start does it: an entry that breaks a limit, or that the state machine
    fails at, is poisoned. Exit code 0 where all is whole, 1 where something is damaged or poisoned, 2 where there is
    no data directory or file.
    """
    if file is not None and data_dir is None:
        _verify_backup(Path(file), output)
    elif data_dir is not None and file is None:
        _verify_directory(data_dir, output)
    else:
        raise click.UsageError("Name either a backup FILE or --data-dir DIR")


def _verify_backup(path: Path, output: str) -> None:
    try:
        head, store = backup.load(path)
    except backup.Damaged as damage:
        if output == "json":
            print_json({"verdict": "damaged", "damage": [str(damage)]})
        else:
            print(f"damaged: {path}: {damage}; take another backup, this one is refused whole.")
        raise SystemExit(1) from None
    except OSError as e:
        hint = "; a node's directory goes behind --data-dir" if isinstance(e, IsADirectoryError) else ""
        fail(f"{path} cannot be read ({e.strerror}){hint}.", 2 if isinstance(e, FileNotFoundError) else 1)
    if output == "json":
        print_json({"verdict": "whole", "damage": [], **head._asdict(), "leases": len(store.leases)})
        return
    print(_line("backup", f"{path.stat().st_size:,} bytes, of cluster {head.cluster_id}"))
    print(_line("state", f"revision {head.revision}, items: {head.items}, leases: {len(store.leases)}"))
    print("whole")


def _verify_directory(data_dir: Path, output: str) -> None:
    try:
        report = verify(data_dir)
    except StartupError as e:
        fail(e.message, 2 if isinstance(e, NotADataDirectory) else 1)
    except OSError as e:
        fail(f"{data_dir} cannot be read ({e.strerror}): run this as the user of the node.")
    if output == "json":
        print_json({"verdict": _verdict(report), **asdict(report)})
    else:
        for line in _lines(report):
            print(line)
    raise SystemExit(0 if _verdict(report) == "whole" else 1)


def _verdict(report: VerifyReport) -> str:
    return "damaged" if report.damage else "poisoned" if report.poisoned else "whole"


def _lines(report: VerifyReport) -> list[str]:
    lines = [_line("node", f"{report.node_id or '?'}, of the cluster of {' '.join(report.members) or '?'}")]
    lines.append(_line("cluster id", report.cluster_id or "?"))
    if report.term is not None:
        lines.append(_line("hard state", f"term {report.term}, vote {report.vote or 'none'}"))
    if report.first_index is not None:
        fit = f", no gap behind the snapshot at {report.snapshots[-1].index}" if report.snapshots else ""
        lines.append(_line("log", f"entries {report.first_index} to {report.last_index}{'' if report.damage else fit}"))
    lines += [_line("journal", _segment(segment)) for segment in report.segments]
    lines += [_line("snapshot", _snapshot(snapshot)) for snapshot in report.snapshots]
    lines += [_line("leftover", f"{name}: {size:,} bytes, not needed") for name, size in report.leftovers.items()]
    bad = [f"damaged: {damage}" for damage in report.damage] + [
        f"poisoned: {each}; {_POISONED}" for each in report.poisoned
    ]
    return lines + (bad or ["whole"])


def _line(what: str, text: str) -> str:
    return f"{what:<12}{text}"


def _segment(segment: SegmentReport) -> str:
    """Kinds of records that there are none of are left out."""
    entries = f"entries {segment.first_index} to {segment.last_index}"
    counts = {
        f"{entries} of terms {segment.first_term} to {segment.last_term}": segment.entries,
        f"hard states: {segment.hard_states}": segment.hard_states,
        f"truncations: {segment.truncations}": segment.truncations,
        f"new starts: {segment.bases}": segment.bases,
        f"{segment.unread_bytes:,} bytes behind the last whole record": segment.unread_bytes,
    }
    return (
        f"{segment.file}: {', '.join([f'{segment.bytes:,} bytes', *(text for text, count in counts.items() if count)])}"
    )


def _snapshot(snapshot: SnapshotReport) -> str:
    return (
        f"{snapshot.file}: {snapshot.bytes:,} bytes, whole, up to entry {snapshot.index} of term {snapshot.term}, "
        f"revision {snapshot.revision}, items: {snapshot.items}, members {' '.join(snapshot.members)}"
    )
