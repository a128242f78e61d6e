"""The command line. Each command's module is imported when it is called, so that `kvnode get` starts in no time."""

from __future__ import annotations

import gc
import signal
import sys

hung_up: list[int] = []  # SIGHUPs of `kvnode serve` that came while it was starting
if sys.argv[1:2] == ["serve"]:
    # SIGHUP asks a node to read its files again, and ends a process that does not expect it. So this stands before all
    # else, even the imports: a tenth of a second.
    signal.signal(signal.SIGHUP, lambda number, frame: hung_up.append(number))
    gc.disable()  # until everything is imported: what that makes stays, and to look it through takes a tenth of a start

import errno  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
from importlib import import_module  # noqa: E402
from typing import Final, NoReturn  # noqa: E402

import click  # noqa: E402

from kvnode import __version__  # noqa: E402
from kvnode.cli.command import Group  # noqa: E402

# A command's name: its module, its function there, and its line in --help, which needs no import; by what it is for.
COMMANDS: Final = {
    "Keys": {
        "put": ("kvnode.cli.keys", "put", "Set a key."),
        "get": ("kvnode.cli.keys", "get", "Print a key's value."),
        "delete": ("kvnode.cli.keys", "delete", "Remove a key."),
        "list": ("kvnode.cli.keys", "list_keys", "List keys."),
        "txn": ("kvnode.cli.txn", "txn", "Compare, then change several keys at once."),
        "watch": ("kvnode.cli.watch", "watch", "Print changes as they happen."),
        "lock": ("kvnode.cli.lock", "lock", "Run a command on one machine at a time."),
        "lease": ("kvnode.cli.leases", "lease", "Grant, renew, revoke or list leases."),
        "export": ("kvnode.cli.lines", "export", "Write keys as JSON lines."),
        "import": ("kvnode.cli.lines", "import_lines", "Set keys from JSON lines."),
    },
    "Cluster": {
        "status": ("kvnode.cli.cluster", "status", "Show every member of the cluster."),
        "leader": ("kvnode.cli.cluster", "leader", "Print who leads."),
        "transfer": ("kvnode.cli.cluster", "transfer", "Hand leadership to another member."),
        "drain": ("kvnode.cli.cluster", "drain", "Take a node out of rotation before it is stopped."),
        "member": ("kvnode.cli.members", "member", "List, add, promote, replace or remove members."),
    },
    "Access": {
        "token": ("kvnode.cli.tokens", "token", "Create, list, change, rotate or revoke access tokens."),
        "session-key": ("kvnode.cli.session_key", "session_key", "Show or rotate the key of admin sessions."),
    },
    "Nodes": {
        "serve": ("kvnode.cli.serve", "serve", "Run one node."),
        "dev": ("kvnode.cli.dev", "dev", "Run a whole cluster on this machine, HAProxy in front."),
    },
    "Data": {
        "backup": ("kvnode.cli.backup", "backup", "Save all keys to a file."),
        "restore": ("kvnode.cli.restore", "restore", "Have a cluster hold what a backup holds."),
        "verify": ("kvnode.cli.verify", "verify_command", "Check a data directory or a backup."),
        "recover": ("kvnode.cli.recover", "recover", "Make a cluster of one when the majority is lost."),
    },
    "Tools": {
        "doctor": ("kvnode.cli.doctor", "doctor", "Examine a machine, a node's options and the cluster."),
        "bench": ("kvnode.cli.bench", "bench", "Measure what a cluster does under load."),
        "completion": ("kvnode.cli.completion", "completion", "Print what makes a shell complete kvnode."),
    },
}
_BY_NAME: Final = {name: row for group in COMMANDS.values() for name, row in group.items()}

EXIT_CODES: Final = """\b
Options stand before or behind a client command.
Exit codes: 0 done, 1 error, 2 usage, 3 key, lease or token not found,
4 precondition failed, 5 no leader or unavailable (nothing was applied),
6 outcome unknown, 7 not allowed."""


class LazyGroup(Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_BY_NAME)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _BY_NAME:
            return None
        module, function, _ = _BY_NAME[cmd_name]
        command: click.Command = getattr(import_module(module), function)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, _BY_NAME))
        for title, commands in COMMANDS.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), line) for name, (_, _, line) in commands.items()])


@click.group(cls=LazyGroup, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="%(prog)s %(version)s")
def kvnode() -> None:
    """A replicated key-value node, made to stand behind a load balancer."""


def main() -> NoReturn:
    """Runs the command line and leaves with its exit code: one sentence on stderr, never a traceback."""
    _open_streams()
    try:
        code = _run()
        sys.stdout.flush()
    except OSError as e:
        if e.errno != errno.EPIPE:  # whoever read along has enough, as `head` has
            _complain(
                f"The output or a file could not be used ({e.strerror}); what was asked for may be done by now.",
                "output",
                1,
            )
        _silence_output()
        code = 1
    sys.exit(code)


def _run() -> int:
    try:
        code = kvnode.main(prog_name="kvnode", standalone_mode=False)
    except SystemExit as end:
        code = end.code
    except click.exceptions.NoArgsIsHelpError as e:
        e.show()
        code = 2
    except click.ClickException as e:
        where = e.ctx.command_path if isinstance(e, click.UsageError) and e.ctx else "kvnode"
        _complain(f"{e.format_message().rstrip('.')}. See {where} --help.", "usage", 2)
        code = 2
    except (click.Abort, KeyboardInterrupt):
        code = 130
    return code if isinstance(code, int) else 0


def _open_streams() -> None:
    """Streams that were closed before become the null device: a socket or the journal would get their numbers."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115  for as long as we run


def _silence_output() -> None:
    """What could not be written is given up: Python would try once more at its end, and complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _complain(sentence: str, code: str, exit_code: int) -> None:
    if _json_is_wanted(sys.argv[1:]):
        print(json.dumps({"error": code, "message": sentence, "exit_code": exit_code}), file=sys.stderr)
    else:
        print(f"kvnode: {sentence}", file=sys.stderr)


def _json_is_wanted(arguments: list[str]) -> bool:
    """By the words themselves: where these are wrong, no command has taken its options yet."""
    if "--" in arguments:
        arguments = arguments[: arguments.index("--")]
    words = " ".join(arguments)
    return any(f"{option}json" in words for option in ("-o ", "-o", "--output ", "--output="))
