"""The command line as a user's shell runs it: a real process, its exit code and what it printed."""

from __future__ import annotations

import asyncio
import io
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from unittest import mock

from kvnode.cli import main
from tests.cluster import PROJECT

COMMAND = [sys.executable, "-m", "kvnode"]


@dataclass(frozen=True)
class Done:
    code: int
    out: bytes
    err: str


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's, without what it says about kvnode."""
    inherited = {name: text for name, text in os.environ.items() if not name.startswith("KVNODE_")}
    return inherited | {"PYTHONPATH": str(PROJECT)} | dict(extra or {})


def kvnode(*args: str, stdin: bytes = b"", env: Mapping[str, str] | None = None, timeout_s: float = 30.0) -> Done:
    """Runs one command to its end; AssertionError where it does not end in time."""
    done = subprocess.run(
        [*COMMAND, *args], input=stdin, capture_output=True, timeout=timeout_s, env=environment(env), check=False
    )
    return Done(done.returncode, done.stdout, done.stderr.decode())


def kvnode_here(*args: str, stdin: bytes = b"", env: Mapping[str, str] | None = None) -> Done:
    """The same in this process: a tenth of the time, for what does not hang on the process itself."""
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.StringIO()
    streams = {"stdin": io.TextIOWrapper(io.BytesIO(stdin), "utf-8"), "stdout": out, "stderr": err}
    with mock.patch.multiple(sys, argv=["kvnode", *args], **streams), mock.patch.dict(os.environ, env or {}):
        try:
            main()
        except SystemExit as end:
            code = end.code
        out.flush()
    assert isinstance(code, int)
    return Done(code, out.buffer.getvalue(), err.getvalue())  # type: ignore[attr-defined]


async def run_kvnode(*args: str, stdin: bytes = b"", env: Mapping[str, str] | None = None) -> Done:
    """The same while the test's own server goes on answering."""
    return await asyncio.to_thread(kvnode, *args, stdin=stdin, env=env)


def is_one_sentence(err: str) -> bool:
    return err.startswith("kvnode: ") and err.count("\n") == 1 and err.rstrip()[-1] in ".?"
