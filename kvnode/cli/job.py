"""A command with all that it starts, ended as a whole: what `kvnode lock` runs.

A shell that is killed leaves its children running, and a child may leave its process group. So the command runs under a
guardian: a process between `kvnode lock` and the command, forked before anything else is loaded. It starts the command
in a process group of its own. On Linux it is also the subreaper (prctl(2)): a process whose parent is gone becomes its
child, whatever session or group it moved to, so that the guardian finds it in /proc.

    kvnode lock  ==socket==  guardian  ->  command  ->  whatever that starts

When `kvnode lock` is gone, even by SIGKILL, the socket ends and the guardian kills all of it. Should the guardian be
killed, the command itself is (PR_SET_PDEATHSIG), and `kvnode lock` kills the group. Not covered: both killed at one
moment, processes of another user or in another pid namespace (sudo, a container's daemon), work that was handed to
a service; and, where there is no subreaper (macOS), what left the group.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

REST_S: Final = 5.0  # for what the command left in its group to end by SIGTERM, before it is killed
KILL_S: Final = 5.0  # for the kernel to end what was killed: longer is a process that hangs in a device
LOOK_S: Final = 0.01

_LINUX: Final = sys.platform == "linux"
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
# What reaches every process of a terminal's foreground group, or of a service, is for `kvnode lock` to pass on.
_NOT_FOR_GUARDIANS: Final = (
    signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP, signal.SIGUSR1, signal.SIGUSR2,
    signal.SIGTTOU,
)  # fmt: skip


class Job:
    """The command as `kvnode lock` sees it.

    `ended`: its exit status, as `subprocess` has it, once `start` was called. `stopped` is set when it was stopped from
    its terminal.
    """

    def __init__(self) -> None:
        """Forks the guardian: before any thread is started, and before there is a loop."""
        self._ours, theirs = socket.socketpair()
        self._guardian_pid = os.fork()
        if self._guardian_pid == 0:
            status = 1
            try:
                self._ours.close()
                status = Guardian(theirs).run()
            finally:
                os._exit(status)
        theirs.close()
        self._held = bytearray()
        self._group = 0
        self._is_alone = False
        self._started: asyncio.Future[str | None] | None = None
        self._gone = asyncio.Event()
        self.ended: asyncio.Future[int] | None = None
        self.stopped = asyncio.Event()

    async def start(self, command: Sequence[str], environment: Mapping[str, str]) -> str | None:
        """Starts the command; why it cannot be started, None where it was."""
        loop = asyncio.get_running_loop()
        self._started, self.ended = loop.create_future(), loop.create_future()
        loop.add_reader(self._ours, self._read)
        self._tell("start", list(command), dict(environment))
        return await self._started

    def send(self, number: signal.Signals) -> None:
        """To every process of the group."""
        self._tell("signal", int(number))

    def stop(self) -> None:
        """Every process of the group stands still until `go_on`."""
        self._tell("stop")

    def go_on(self) -> None:
        self.stopped.clear()
        self._tell("go_on")

    async def end(self, grace_s: float, *, all_of_it: bool) -> bool:
        """SIGTERM to what is left of the command, SIGKILL after `grace_s`; whether all of it is gone.

        `all_of_it`: also what has left the group.
        """
        if self._is_alone:
            return True
        self._gone.clear()
        self._tell("end", grace_s, all_of_it)
        try:
            async with asyncio.timeout(grace_s + KILL_S + 1.0):
                await self._gone.wait()
        except TimeoutError:
            return False
        return True

    def leave(self) -> None:
        """Lets what has left the group run on, as a daemon that was started on purpose does. The last call."""
        self._tell("leave")
        self._ours.close()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._guardian_pid, 0)

    def _tell(self, *message: Any) -> None:
        # Blocking: the guardian does nothing but listen, and it is killed together with its socket.
        with contextlib.suppress(ConnectionError):
            self._ours.sendall(json.dumps(message).encode("ascii") + b"\n")

    def _read(self) -> None:
        try:
            data = self._ours.recv(65_536, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        if not data:
            self._alone()
            return
        self._held += data
        while (end := self._held.find(b"\n")) >= 0:
            kind, *rest = json.loads(bytes(self._held[:end]))
            del self._held[: end + 1]
            self._hear(kind, rest)

    def _hear(self, kind: str, rest: list[Any]) -> None:
        assert self._started is not None
        assert self.ended is not None
        if kind == "started":
            self._group = rest[0]
            self._started.set_result(None)
        elif kind == "refused":
            self._started.set_result(rest[0])
        elif kind == "ended":
            self.ended.set_result(rest[0])
        elif kind == "stopped":
            self.stopped.set()
        elif kind == "gone":
            self._gone.set()

    def _alone(self) -> None:
        """The guardian was killed, and the command with it: what is left in the group is killed from here."""
        assert self._started is not None
        assert self.ended is not None
        self._is_alone = True
        asyncio.get_running_loop().remove_reader(self._ours)
        if self._group:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._group, signal.SIGKILL)
        if not self._started.done():
            self._started.set_result("its guardian was killed")
        if not self.ended.done():
            self.ended.set_result(-signal.SIGKILL)
        self._gone.set()


class Guardian:
    """The process in between. One thread and no loop: it must go on whatever happens to `kvnode lock`."""

    def __init__(self, owner: socket.socket) -> None:
        self._owner = owner
        self._held = bytearray()
        self._process: subprocess.Popen[bytes] | None = None
        self._group = 0
        self._status: int | None = None
        self._terminal: int | None = None  # the terminal's file, while the command has it

    def run(self) -> int:
        woken, wakes = socket.socketpair()
        for end in (woken, wakes):
            end.setblocking(False)
        signal.set_wakeup_fd(wakes.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, _nothing)
        for number in _NOT_FOR_GUARDIANS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup's, which the command inherits
                signal.signal(number, _nothing)  # and no SIG_IGN of its own, which it would inherit as well
        if _LINUX:
            _prctl(_PR_SET_CHILD_SUBREAPER, 1)
        while True:
            select.select([self._owner, woken], [], [])
            with contextlib.suppress(BlockingIOError):
                woken.recv(4096)
            self._reap()
            if not self._heard():
                return 0

    def _heard(self) -> bool:
        """Does what the owner says; False at the end of it."""
        try:
            data = self._owner.recv(65_536, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        except ConnectionError:
            data = b""
        if not data:  # killed, or it would have said so: nothing keeps the lock any more
            self._end(0.0, all_of_it=True)
            return False
        self._held += data
        while (end := self._held.find(b"\n")) >= 0:
            kind, *rest = json.loads(bytes(self._held[:end]))
            del self._held[: end + 1]
            if kind == "leave":
                return False
            self._do(kind, rest)
        return True

    def _do(self, kind: str, rest: list[Any]) -> None:
        if kind == "start":
            self._start(*rest)
        elif kind == "signal":
            self._signal(rest[0])
        elif kind == "stop":
            self._signal(signal.SIGSTOP)
        elif kind == "go_on":
            if self._terminal is not None:
                _give(self._terminal, self._group)
            self._signal(signal.SIGCONT)
        elif kind == "end":
            self._end(rest[0], all_of_it=rest[1])
            self._tell("gone")

    def _start(self, command: list[str], environment: dict[str, str]) -> None:
        me = os.getpid()

        def tie() -> None:
            _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != me:  # the guardian was killed before that
                os._exit(1)

        try:
            self._process = subprocess.Popen(
                command, env=environment, process_group=0, preexec_fn=tie if _LINUX else None
            )
        except (OSError, ValueError) as e:
            self._tell("refused", getattr(e, "strerror", None) or str(e))
            return
        self._group = self._process.pid
        self._tell("started", self._group)

    def _tell(self, *message: Any) -> None:
        with contextlib.suppress(ConnectionError):
            self._owner.sendall(json.dumps(message).encode() + b"\n")

    def _signal(self, number: int) -> None:
        if self._group:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._group, number)

    # --- children, its own and those that it was left ---------------------------------------------------

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid != self._group:
                continue
            if os.WIFSTOPPED(status):
                self._stopped(os.WSTOPSIG(status))
            else:
                assert self._process is not None
                self._process.returncode = self._status = os.waitstatus_to_exitcode(status)
                if self._terminal is not None:
                    _give(self._terminal, os.getpgrp())
                self._tell("ended", self._status)

    def _stopped(self, number: int) -> None:
        """The command reads from the terminal for the first time, or Ctrl-Z stopped it there."""
        if number in (signal.SIGTTIN, signal.SIGTTOU) and self._terminal is None:
            self._terminal = _terminal()
            if self._terminal is not None:
                _give(self._terminal, self._group)
                self._signal(signal.SIGCONT)
        elif number == signal.SIGTSTP and self._terminal is not None:
            _give(self._terminal, os.getpgrp())
            self._tell("stopped")

    def _end(self, grace_s: float, *, all_of_it: bool) -> None:
        """Bounded: `grace_s` for SIGTERM, KILL_S for SIGKILL."""
        if not self._group:
            return
        if grace_s > 0:
            self._signal_all(signal.SIGTERM, all_of_it)
            self._signal_all(signal.SIGCONT, all_of_it)  # what is stopped hears nothing else
            if self._wait_gone(grace_s, all_of_it):
                return
        deadline = time.monotonic() + KILL_S
        while time.monotonic() < deadline:
            self._signal_all(signal.SIGKILL, all_of_it)  # again: what was being started was not there a moment ago
            if self._wait_gone(2 * LOOK_S, all_of_it):
                return

    def _wait_gone(self, timeout_s: float, all_of_it: bool) -> bool:
        deadline = time.monotonic() + timeout_s
        while True:
            self._reap()
            if not self._left(all_of_it):
                return True
            if time.monotonic() >= deadline:
                return False
            time.sleep(LOOK_S)

    def _left(self, all_of_it: bool) -> bool:
        """Whether any process of the command is left. A zombie is none: it does nothing, and its parent reaps it."""
        if not _LINUX:
            try:
                os.killpg(self._group, 0)
            except (ProcessLookupError, PermissionError):
                return False
            return True
        return bool(self._members(all_of_it))

    def _members(self, all_of_it: bool) -> list[int]:
        """Linux: the group's processes, and with `all_of_it` every descendant of the guardian."""
        parents, members = {}, set()
        for pid, parent, group in _processes():
            parents[pid] = parent
            if group == self._group:
                members.add(pid)
        if all_of_it:
            family, grown = {os.getpid()}, True
            while grown:
                more = {pid for pid, parent in parents.items() if parent in family} - family
                family, grown = family | more, bool(more)
            members |= family - {os.getpid()}
        return sorted(members)

    def _signal_all(self, number: signal.Signals, all_of_it: bool) -> None:
        self._signal(number)
        if _LINUX and all_of_it:
            for pid in self._members(True):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, number)


def _nothing(number: int, frame: object) -> None:
    """A handler, so that what is started has the signal's default again (POSIX, exec)."""


def _processes() -> list[tuple[int, int, int]]:
    """(pid, parent, process group) of every process that is no zombie: proc(5)."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    # The name of the program is in brackets, and may have spaces and brackets itself.
                    state, parent, group = file.read().rpartition(b")")[2].split()[:3]
            except (OSError, ValueError):
                continue
            if state not in (b"Z", b"X"):
                found.append((int(name), int(parent), int(group)))
    return found


def _terminal() -> int | None:
    """The controlling terminal, where this process is in its foreground."""
    try:
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if os.tcgetpgrp(terminal) == os.getpgrp():
            return terminal
    except OSError:
        pass
    os.close(terminal)
    return None


def _give(terminal: int, group: int) -> None:
    with contextlib.suppress(OSError):
        os.tcsetpgrp(terminal, group)


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
