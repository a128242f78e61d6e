"""The machine that a node runs on, or is to run on: its disk, its limits, its secret, what is installed."""

from __future__ import annotations

import errno
import os
import platform
import resource
import stat
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from kvnode import __version__
from kvnode.config.security import is_public
from kvnode.errors import StartupError
from kvnode.http.release import check_release as check_aiohttp
from kvnode.node.disk_health import RESERVE_BYTES_MAX, RESERVE_SHARE
from kvnode.raft.core import check_release as check_core
from kvnode.tools.doctor.finding import (
    Finding,
    ok,
    problem,
    warning,
)

SYNCS: Final = 32
SYNC_BYTES: Final = 4_096
# Every write waits for one sync on the leader and one on a follower: at 10 ms a client alone writes 50 a second.
SYNC_SLOW_S: Final = 0.010
COMFORTABLE_BYTES: Final = 1_073_741_824  # log and two snapshots of a store of some hundred MiB
FILES_COMFORTABLE: Final = 8_192  # one for each client, and the cluster's own
FILES_MIN: Final = 256
GIB: Final = 1_073_741_824


def versions() -> Finding:
    try:
        check_core()
        check_aiohttp()
    except StartupError as error:
        return problem("version", error.message)
    made_for = "with the Raft core and the aiohttp that it was made for"
    return ok("version", f"kvnode {__version__} on Python {platform.python_version()}, {made_for}.")


def file_limit() -> Finding:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]  # a node takes what it may have
    if hard == resource.RLIM_INFINITY or hard >= FILES_COMFORTABLE:
        return ok("files", "The limit of open files leaves room for thousands of clients.")
    how = f"raise it with 'ulimit -Hn {FILES_COMFORTABLE}' as root or LimitNOFILE={FILES_COMFORTABLE} in the unit"
    if hard < FILES_MIN:
        return problem("files", f"A process may open {hard} files, fewer than a busy node needs by itself: {how}.")
    return warning("files", f"A process may open {hard} files, and each client takes one: {how}.")


def private_file(path: str, refused: bool) -> Finding:
    """That nobody else can read it. `refused`: a node does not start with it otherwise."""
    try:
        mode = os.stat(path).st_mode
        reachable = all(folder.stat().st_mode & stat.S_IXOTH for folder in Path(path).absolute().parents)
    except OSError as error:
        return problem("secret", f"The file {path} cannot be looked at ({error.strerror}): give a readable one.")
    if refused and is_public(Path(path)):
        return problem(
            "secret", f"Every user of this machine can read {path}, and a node refuses it: chmod 600 {path}."
        )
    if reachable and mode & stat.S_IRWXO:
        return warning("secret", f"Everybody on this machine may use the file {path}, a secret: chmod 600 {path}.")
    return ok("secret", f"The file {path} is nobody else's to read.")


def disk(data_dir: Path) -> Iterator[Finding]:
    """The directory, its file system, the space, and how long a sync takes. Leaves nothing behind."""
    where = data_dir.absolute()
    while not where.exists() and where != where.parent:
        where = where.parent
    if not where.is_dir():
        yield problem("disk", f"{where} is no directory: give the node another --data-dir.")
        return
    numbers = os.statvfs(where)
    free, total = numbers.f_bavail * numbers.f_frsize, numbers.f_blocks * numbers.f_frsize
    if where == data_dir.absolute() and where.stat().st_uid != os.geteuid():
        yield warning("disk", f"{where} belongs to another user: a node that runs as this one refuses it; chown -R it.")
    reserve = min(RESERVE_BYTES_MAX, total // RESERVE_SHARE)
    sentence = f"{free / GIB:.1f} of {total / GIB:.1f} GiB are free at {where}"
    if free < reserve * 1.5:
        yield problem("disk", f"{sentence}: a node refuses writes there; free some space or take a larger disk.")
    elif free < COMFORTABLE_BYTES:
        yield warning("disk", f"{sentence}: little for a log and its snapshots; watch it or take a larger disk.")
    else:
        yield ok("disk", f"{sentence}.")
    if (kind := _file_system(where)) in ("tmpfs", "ramfs"):
        yield warning("disk", f"{where} is in memory ({kind}): a reboot loses it; take a --data-dir on a disk.")
    elif kind.startswith(("nfs", "cifs", "smb", "fuse")):
        yield warning("disk", f"{where} is on {kind}: its locks and syncs may not hold; take a disk of this machine.")
    yield _sync(where)


def _sync(where: Path) -> Finding:
    try:
        with tempfile.TemporaryFile(dir=where, prefix=".doctor-") as file:
            took_s = []
            for _ in range(SYNCS):
                file.write(bytes(SYNC_BYTES))
                file.flush()
                began_at = time.monotonic()
                os.fdatasync(file.fileno())
                took_s.append(time.monotonic() - began_at)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return problem("fsync", f"{where} cannot be written by this user: chown it, or run as the node's user.")
        return problem("fsync", f"{where} cannot be written ({error.strerror}): mend the disk or take another one.")
    median_s, worst_s = statistics.median(took_s), max(took_s)
    sentence = f"A sync of {SYNC_BYTES // 1_024} KiB takes {median_s * 1_000:.1f} ms, at worst {worst_s * 1_000:.1f} ms"
    if median_s > SYNC_SLOW_S:
        return warning("fsync", f"{sentence}, and every write waits for it: take a faster disk, or one less shared.")
    return ok("fsync", f"{sentence}.")


def _file_system(where: Path) -> str:
    """The kind of file system, '' where nobody says."""
    try:
        lines = Path("/proc/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    mounts = {line.split()[1]: line.split()[2] for line in lines if line.count(" ") >= 2}
    path = str(where.resolve())
    inside = [point for point in mounts if point == "/" or path == point or path.startswith(point + "/")]
    return mounts[max(inside, key=len)] if inside else ""
