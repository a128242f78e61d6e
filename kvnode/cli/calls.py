"""What the client commands share: --url, one call to the cluster, and the exit code of every failure."""

from __future__ import annotations

import asyncio
import json
import math
import sys
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final, NoReturn, TextIO, TypeVar

import click

from kvnode import errors
from kvnode.cli.access import access, access_options

if TYPE_CHECKING:
    from kvnode.client import Client

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_URL: Final = "http://127.0.0.1:8001"
OUTCOME_UNKNOWN: Final = 6

# The first row that an error is an instance of, or whose code it carries, decides.
_EXIT_CODES: Final = (
    (errors.OutcomeUnknown, OUTCOME_UNKNOWN),
    (errors.KeyNotFound, 3),
    (errors.LeaseNotFound, 3),
    (errors.TokenNotFound, 3),
    (errors.PreconditionFailed, 4),
    (errors.Unavailable, 5),
    (errors.BadRequest, 2),
)


class Finite(click.FloatRange):
    """A number within the range, and one: NaN is neither below a bound nor above it, and no deadline ever comes."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is no number to count with.", param, ctx)
        return number


where_option = click.option(
    "--url",
    metavar="URL[,URL…]",
    envvar="KVNODE_URL",
    default=DEFAULT_URL,
    show_default=True,
    help="Nodes or balancers to talk to, the first one first; also KVNODE_URL.",
)
timeout_option = click.option(
    "--timeout",
    "timeout_s",
    metavar="SECONDS",
    type=Finite(0.1, 600),
    default=10.0,
    show_default=True,
    help="For each call to the cluster, over all nodes and repetitions.",
)
output_option = click.option(
    "-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True, help="What to print."
)


profile_option = click.option(
    "--profile", metavar="NAME", expose_value=False, help="Take url, token-file, cacert and timeout from there."
)


def url_option(command: F) -> F:
    """Adds the options that say where the cluster is and who asks."""
    return where_option(access_options(profile_option(command)))


def connected(command: F) -> F:
    """The same, and for how long it may take."""
    return url_option(timeout_option(command))


def urls_in(url: str) -> list[str]:
    """What --url names, in order."""
    return [each.strip() for each in url.split(",") if each.strip()]


def call(url: str, timeout_s: float, work: Callable[[Client], Awaitable[T]]) -> T:
    """Runs `work` with a client and returns what it returns; a failure is one sentence and the command's end."""
    from kvnode.client import Client  # aiohttp takes longer to load than most calls take

    urls, shown = urls_in(url), access()

    async def connect() -> T:
        async with Client(urls, timeout_s, access=shown) as client:
            return await work(client)

    return finish(connect())


def finish(work: Coroutine[Any, Any, T], loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None) -> T:
    """Runs `work` to its end; a failure is one sentence and the command's end."""
    try:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            return runner.run(work)
    except errors.KvnodeError as e:
        more: dict[str, Any] = {"outcome": e.outcome} if isinstance(e, errors.Definite | errors.Indefinite) else {}
        if isinstance(e, errors.PreconditionFailed):
            more["current_revision"] = e.current_revision
        fail(e.message + _advice(e), exit_code(e), e.code, **more)


def fail(message: str, exit_code: int = 1, code: str = "error", **more: Any) -> NoReturn:
    """Ends the command with one sentence on stderr; with -o json, one object with `code` as its "error"."""
    ctx = click.get_current_context(silent=True)
    if ctx is not None and ctx.params.get("output") == "json":
        print_json({"error": code, "message": message, "exit_code": exit_code, **more}, sys.stderr)
    else:
        complain(message)
    raise SystemExit(exit_code) from None


def complain(message: str) -> None:
    """Says something besides the result."""
    print(f"kvnode: {message}", file=sys.stderr)


def _advice(e: errors.KvnodeError) -> str:
    """What to do at the command line, where a node's sentence says it for programs: it speaks of a header."""
    asked = isinstance(e, errors.Unauthorized) and not access().token
    return " On the command line: --token-file FILE, or KVNODE_TOKEN." if asked else ""


def exit_code(e: errors.KvnodeError) -> int:
    """The command line's exit code of a failure: CLI users branch on it."""
    if e.code == "not_allowed":
        return 7
    return next((code for kind, code in _EXIT_CODES if isinstance(e, kind)), 1)


def print_json(value: Any, file: TextIO | None = None) -> None:
    """On stdout, or where the data itself goes there, on `file`."""
    print(json.dumps(value, ensure_ascii=False, indent=2 if (file or sys.stdout).isatty() else None), file=file)
