"""docs/OPERATIONS.md from the first cluster on: its marked examples, in one shell, one after the other."""

from __future__ import annotations

import os
import random
import re
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import pytest

from tests.cli.command import environment
from tests.cluster import PROJECT
from tests.test_documentation import matches

PAGE = PROJECT / "docs" / "OPERATIONS.md"
BLOCK = re.compile(r"^<!-- run -->\n```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
STEP_S = 60.0


class Shell:
    """One bash; `run` returns what a command printed. Its end is the end of what it has started."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self._process = subprocess.Popen(
            ["bash", "-u"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env=environment({"PATH": path}), cwd=folder, start_new_session=True,
        )  # fmt: skip
        self._selector = selectors.DefaultSelector()
        assert self._process.stdout is not None
        self._selector.register(self._process.stdout, selectors.EVENT_READ)

    def run(self, command: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        end = f"--- {time.monotonic_ns()} ---"
        self._process.stdin.write(f"{command}\necho '{end}'\n".encode())
        self._process.stdin.flush()
        out, deadline = b"", time.monotonic() + STEP_S
        while not out.endswith(f"{end}\n".encode()):
            left_s = deadline - time.monotonic()
            assert left_s > 0, f"{command!r} did not end, having printed {out.decode()!r}"
            if self._selector.select(left_s):
                piece = os.read(self._process.stdout.fileno(), 65_536)
                assert piece, f"the shell ended at {command!r}: {out.decode()}"
                out += piece
        return out.decode().removesuffix(f"{end}\n")

    def close(self) -> None:
        with suppress(ProcessLookupError):  # a step that hangs is ended as well
            os.killpg(self._process.pid, signal.SIGKILL)
        self._selector.close()
        self._process.communicate(timeout=10)  # which closes both pipes


def is_free(port: int) -> bool:
    with socket.socket() as candidate:
        try:
            candidate.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def prefixes(count: int) -> list[str]:
    """What stands in the place of 820, 720 and others in a page, so that node 4 listens on PREFIX4."""
    while True:
        first = random.SystemRandom().randrange(1_100, 3_000)
        if all(is_free(each * 10 + last) for each in range(first, first + count) for last in range(10)):
            return [str(first + number) for number in range(count)]


def elsewhere(text: str, ports: Mapping[str, str]) -> str:
    """With this run's ports in the place of the page's: 8201, and 820$n or 820\\1, which the shell or sed completes."""
    return re.sub(rf"\b({'|'.join(ports)})(?=\d\b|\$|\\)", lambda found: ports[found[1]], text)


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    shell = Shell(tmp_path)
    yield shell
    shell.close()


def steps(text: str) -> list[tuple[str, str]]:
    """(command, what it prints) of a block."""
    return [(found[1], found[2]) for found in re.finditer(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", text, re.MULTILINE)]


def do(shell: Shell, block: str) -> None:
    for command, expected in steps(block):
        printed = shell.run(command)
        assert matches(expected, printed), f"$ {command}\n{printed}\nand not\n{expected}"


@pytest.mark.alone
def test_the_examples_do_what_the_page_says_in_its_order(shell: Shell) -> None:
    ports = dict(zip(("820", "720"), prefixes(2), strict=True))
    blocks = BLOCK.findall(PAGE.read_text())
    assert len(blocks) >= 15
    for block in blocks:
        do(shell, elsewhere(block, ports))
