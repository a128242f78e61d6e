"""The options by which every client command says who it is: a token, and whose certificates it trusts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click
from click.core import ParameterSource

if TYPE_CHECKING:
    from kvnode.client.access import Access

F = TypeVar("F", bound=Callable[..., Any])

TOKEN_BYTES_MAX: Final = 4_096
_GIVEN: Final = "kvnode.access"


def _keep(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    """Set aside, so that no command needs to hand it on; a flag counts before the environment."""
    if value and param.name:
        flag = ctx.get_parameter_source(param.name) is ParameterSource.COMMANDLINE
        ctx.meta.setdefault(_GIVEN, {})[param.name] = (flag, value)


def access_options(command: F) -> F:
    """Adds --token, --token-file, --cacert, --cert and --cert-key; `access` is what was given."""
    keep: dict[str, Any] = {"callback": _keep, "expose_value": False}
    for option in (
        click.option(
            "--cert-key",
            "cert_key",
            metavar="FILE",
            envvar="KVNODE_CLIENT_KEY",
            help="The key of --cert; or KVNODE_CLIENT_KEY.",
            **keep,
        ),
        click.option(
            "--cert",
            "client_cert",
            metavar="FILE",
            envvar="KVNODE_CLIENT_CERT",
            help="A certificate in the place of a token; or KVNODE_CLIENT_CERT.",
            **keep,
        ),
        click.option(
            "--cacert",
            metavar="FILE",
            envvar="KVNODE_CACERT",
            help="Who signs the nodes' https://; or KVNODE_CACERT.",
            **keep,
        ),
        click.option(
            "--token-file",
            metavar="FILE",
            envvar="KVNODE_TOKEN_FILE",
            help="A file with the token; or KVNODE_TOKEN_FILE.",
            **keep,
        ),
        click.option(
            "--token",
            metavar="TOKEN",
            envvar="KVNODE_TOKEN",
            help="For nodes that ask for one; better KVNODE_TOKEN.",
            **keep,
        ),
    ):
        command = option(command)
    return command


def access() -> Access:
    """Of the command that runs now. A token beats a file, but for a file by flag and a token by environment."""
    from kvnode.client.access import Access  # aiohttp takes longer to load than most calls take

    given: dict[str, tuple[bool, str]] = click.get_current_context().meta.get(_GIVEN, {})
    by_flag, token = given.get("token", (False, ""))
    file_by_flag, file = given.get("token_file", (False, ""))
    if file and (not token or (file_by_flag and not by_flag)):
        token = _read(file)
    ca, cert, key = (given.get(name, (False, ""))[1] for name in ("cacert", "client_cert", "cert_key"))
    if key and not cert:
        raise click.UsageError("--cert-key is the key of --cert: name that, too, or leave both out")
    return Access(token, *(Path(each) if each else None for each in (ca, cert, key)))


def _read(file: str) -> str:
    try:
        with open(file, encoding="utf-8") as f:
            return f.read(TOKEN_BYTES_MAX).strip()
    except (OSError, ValueError):
        raise click.UsageError(f"the token file {file!r} cannot be read") from None
