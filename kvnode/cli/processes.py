"""Child processes of `kvnode dev`: started, listened to, started again when they die, and never left behind.

Plain processes, one reading thread each, and a loop that looks at them every few milliseconds: starting and
stopping cannot overlap then, so that no child is ever started behind the back of the one who stops them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Final

RESTART_S: Final = 1.5  # long enough to see the cluster heal without the node, short enough to wait for it
QUICK_DEATHS_MAX: Final = 4  # so many deaths within QUICK_S: starting it again is no help
QUICK_S: Final = 20.0
HURRY_S: Final = 0.2
LOOK_S: Final = 0.03
LINE_CHARS_MAX: Final = 65_536

# What a child runs before it becomes its program: the kernel ends it when `kvnode dev` ends, by kill -9 too (prctl(2),
# PR_SET_PDEATHSIG is 1; the thread that started the child counts as its parent, and that is the main one). SIGKILL and
# at once: what a node acknowledged is on disk, and the ports are free for the next `kvnode dev`. A parent that ended
# before the call is no parent any more. A Python function between fork and exec (`preexec_fn`) could wait for a lock of
# one of this process's threads for ever.
_TETHER: Final = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() == int(sys.argv[1]):
    os.execvp(sys.argv[2], sys.argv[2:])
"""

Say = Callable[[str, str], None]  # (who, line)
Reword = Callable[[str], str | None]  # a line as it came to a line as it is printed, None for not at all


def as_it_is(line: str) -> str:
    return line


class Child:
    """One program that is to run until it is told to stop."""

    def __init__(
        self, name: str, command: Sequence[str], environ: Mapping[str, str], say: Say, reword: Reword = as_it_is
    ) -> None:
        self.name = name
        self.last_line = ""
        self.given_up = False
        self._command = list(command)
        self._environ = dict(environ)
        self._say = say
        self._reword = reword
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._start_again_at: float | None = None
        self._deaths: deque[float] = deque(maxlen=QUICK_DEATHS_MAX)

    @property
    def pid(self) -> int:
        """The pid of the newest process, 0 before the first."""
        return self._process.pid if self._process else 0

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Starts the process; raises OSError."""
        # A session of its own: Ctrl-C in the terminal reaches `kvnode dev` alone, which stops its children in order.
        self._process = subprocess.Popen(
            _tethered(self._command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=self._environ,
            text=True,
            errors="replace",
        )
        self._reader = threading.Thread(target=self._read, args=(self._process,), daemon=True)
        self._reader.start()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            while line := lines.readline(LINE_CHARS_MAX):
                self.last_line = line.rstrip()
                if shown := self._reword(self.last_line):
                    self._say(self.name, shown)

    def exit_code(self) -> int | None:
        """None while it runs. Before it returns a code, what the process had to say was passed on."""
        code = self._process.poll() if self._process else None
        if code is not None and self._reader:
            self._reader.join(1.0)
        return code

    def look_after(self) -> bool:
        """Starts it again some time after it died, unless it dies too often; True when it was started just now."""
        code = self.exit_code()
        if code is None or self.given_up:
            return False
        now = time.monotonic()
        if self._start_again_at is None:
            self._deaths.append(now)
            if len(self._deaths) == QUICK_DEATHS_MAX and now - self._deaths[0] < QUICK_S:
                self.given_up = True
                self._say("dev", f"{self.name} ended {QUICK_DEATHS_MAX} times within {QUICK_S:g} s: it stays down.")
                return False
            self._start_again_at = now + RESTART_S
            self._say("dev", f"{self.name} {how_it_ended(code)}; it is started again in {RESTART_S:g} s.")
        if now < self._start_again_at:
            return False
        self._start_again_at = None
        self.start()
        self._say("dev", f"{self.name} is started again, pid {self.pid}.")
        return True

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal if it still runs."""
        if self._process and self._process.poll() is None:
            self._process.send_signal(number)


def _tethered(command: Sequence[str]) -> list[str]:
    """The command, to end with this process where the system has a way to say so: Linux."""
    if sys.platform != "linux":
        return list(command)
    return [sys.executable, "-I", "-S", "-c", _TETHER, str(os.getpid()), *command]


def stop_all(children: Sequence[Child], grace_s: float, hurried: Callable[[], bool]) -> None:
    """SIGTERM to each, SIGKILL to what still runs after `grace_s` or once `hurried()`. Returns when none is left."""
    _signal_all(children, signal.SIGTERM)
    if not _wait_all(children, HURRY_S, hurried):
        # A node's second signal skips what the first waits for: all members go, nobody is left to hand over to.
        _signal_all(children, signal.SIGTERM)
        if not _wait_all(children, grace_s, hurried):
            _signal_all(children, signal.SIGKILL)
            _wait_all(children, grace_s, lambda: False)
    for child in children:
        child.exit_code()


def _signal_all(children: Sequence[Child], number: signal.Signals) -> None:
    for child in children:
        child.signal(number)


def _wait_all(children: Sequence[Child], timeout_s: float, hurried: Callable[[], bool]) -> bool:
    """Whether all have ended within the time."""
    deadline = time.monotonic() + timeout_s
    while [child for child in children if child.running]:  # asks every one: who has ended is reaped by that
        if time.monotonic() > deadline or hurried():
            return False
        time.sleep(LOOK_S)
    return True


def how_it_ended(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


def printer(names: Sequence[str]) -> Say:
    """Prints lines as `n1  | …`; in colours on a terminal, unless NO_COLOR is set (no-color.org)."""
    colours = (36, 33, 35, 34, 32, 96, 95, 90)
    width = max(map(len, names))
    coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    colour_of = {"dev": 1} | {name: colours[i % len(colours)] for i, name in enumerate(names) if name != "dev"}
    one_at_a_time = threading.Lock()

    def say(name: str, line: str) -> None:
        prefix = f"{name:<{width}} |"
        with one_at_a_time:
            print(f"\033[{colour_of[name]}m{prefix}\033[0m {line}" if coloured else f"{prefix} {line}", flush=True)

    return say
