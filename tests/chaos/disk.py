"""File systems of a node's own: one that can be made full and roomy again, and one that can be made to hang."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path

SIZE_BYTES = 384 * 1_048_576  # a journal before its compaction, a snapshot beside it, and room to spare
PAGE_BYTES = 4_096
HANGING_BYTES = 512 * 1_048_576  # sparse: it takes what is written
CLONE_NEWNS = 0x0002_0000  # unshare(2)
HUNG_S_MAX = 60.0  # a run that is killed leaves no file system frozen for longer


class SmallDisk:
    """A tmpfs at `folder`. Raises OSError where it cannot be mounted (it takes root)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.full = False
        folder.mkdir(parents=True)
        self._mount("-t", "tmpfs", "-o", f"size={SIZE_BYTES}", "kvnode-chaos", str(folder))

    def fill(self, leave_bytes: int) -> None:
        """Shrinks the file system to what is in it now and so much more: the next write finds ENOSPC."""
        self.full = True
        for _ in range(20):
            numbers = os.statvfs(self.folder)
            used_bytes = (numbers.f_blocks - numbers.f_bfree) * numbers.f_frsize
            try:
                # A size of 0 means no limit, so one page is the least.
                return self._mount("-o", f"remount,size={max(PAGE_BYTES, used_bytes + leave_bytes)}", str(self.folder))
            except OSError:
                continue  # the node has written meanwhile: a file system cannot be smaller than what it holds
        raise OSError(f"{self.folder} could not be shrunk")

    def free(self) -> None:
        self._mount("-o", f"remount,size={SIZE_BYTES}", str(self.folder))
        self.full = False

    def close(self) -> None:
        """Never raises."""
        subprocess.run(["umount", "-l", str(self.folder)], capture_output=True, check=False)

    @staticmethod
    def _mount(*arguments: str) -> None:
        _run("mount", *arguments)


class HangingDisk:
    """A file system of its own at `folder` that can be made to hang: nothing that is written or synced there ends.

    Raises OSError where it cannot be made (it takes root, and Linux).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hung = False
        self._guard: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True)
        self._image = folder.with_name(f"{folder.name}.img")
        with self._image.open("wb") as image:
            image.truncate(HANGING_BYTES)
        _run("mkfs.ext4", "-q", "-F", str(self._image))
        _run("mount", "-o", "loop", str(self._image), str(folder))

    def hang(self) -> None:
        """Whoever writes from now on waits in the kernel, where no signal reaches it, until `thaw`."""
        self.hung = True
        late = f'sleep {HUNG_S_MAX:g}; fsfreeze -u "$0"'
        self._guard = subprocess.Popen(["sh", "-c", late, str(self.folder)], start_new_session=True)
        _run("fsfreeze", "-f", str(self.folder))

    def thaw(self) -> None:
        if self.hung:
            _run("fsfreeze", "-u", str(self.folder))
            self.hung = False
        if self._guard is not None:
            os.killpg(self._guard.pid, signal.SIGKILL)
            self._guard.wait()
            self._guard = None

    def close(self) -> None:
        """Never raises."""
        with contextlib.suppress(OSError):
            self.thaw()
        subprocess.run(["umount", "-l", str(self.folder)], capture_output=True, check=False)
        self._image.unlink(missing_ok=True)


def private_mounts() -> None:
    """What this process mounts from now on is its own and its children's, and goes away with them; where it may not,
    nothing changes. To be called before there are threads."""
    libc = ctypes.CDLL(None, use_errno=True)
    if sys.platform == "linux" and libc.unshare(CLONE_NEWNS) == 0:
        _run("mount", "--make-rprivate", "/")


def _run(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except FileNotFoundError:
        raise OSError(f"there is no `{command[0]}` command here") from None
    if done.returncode != 0:
        raise OSError(done.stderr.strip())
