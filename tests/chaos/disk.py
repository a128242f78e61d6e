"""A small file system of a node's own that can be made full and roomy again, without filling this machine's memory."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

SIZE_BYTES = 384 * 1_048_576  # a journal before its compaction, a snapshot beside it, and room to spare
PAGE_BYTES = 4_096


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
        try:
            done = subprocess.run(["mount", *arguments], capture_output=True, text=True, timeout=20, check=False)
        except FileNotFoundError:
            raise OSError("there is no `mount` command here") from None
        if done.returncode != 0:
            raise OSError(done.stderr.strip())
