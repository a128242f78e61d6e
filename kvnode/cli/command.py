"""The classes of kvnode's commands: client options stand before a command's name as well, or come from a profile.

    kvnode --url http://n1:8001 get key          as  kvnode get key --url http://n1:8001
    kvnode --profile prod lease list             with what ~/.config/kvnode/config.toml says of [profiles.prod]

What stands behind the command counts before what stands in front of it, and both before the profile; all three count
before the environment, so that a command never goes to another cluster than the one that it names.
"""

from __future__ import annotations

import os
import tomllib
from itertools import zip_longest
from pathlib import Path
from typing import Any, Final

import click

from kvnode.config import values

_IN_FRONT: Final = "kvnode.options_in_front"  # the arguments of options before the command, as they were given
PROFILE_VARIABLE: Final = "KVNODE_PROFILE"
# What a profile may say, and the option that says the same. No token: a file of its own can be kept from other eyes.
PROFILE_KEYS: Final = {"url": "--url", "token-file": "--token-file", "cacert": "--cacert", "timeout": "--timeout"}


def directory(ctx: click.Context, param: click.Parameter, value: str | None) -> Path | None:
    """A callback: the directory that an option names. An empty text, as of a variable that is not set, is refused."""
    try:
        return None if value is None else values.directory(value)
    except values.Malformed as problem:
        raise click.BadParameter(f"{problem}.") from None


def _keep(ctx: click.Context, param: click.Parameter, value: object) -> None:
    if value is not None:
        ctx.meta.setdefault(_IN_FRONT, []).extend((param.opts[-1], str(value)))


def options_in_front() -> list[click.Parameter]:
    """Parameters for a group: options of the commands below it, kept until one of these is called."""
    keep: dict[str, Any] = {"callback": _keep, "expose_value": False}
    return [
        click.Option(["--url"], metavar="URL[,URL…]", help="Nodes or balancers to talk to; also KVNODE_URL.", **keep),
        click.Option(["--token"], metavar="TOKEN", help="For nodes that ask for one; better KVNODE_TOKEN.", **keep),
        click.Option(["--token-file"], metavar="FILE", help="A file with the token.", **keep),
        click.Option(["--cacert"], metavar="FILE", help="Who signs the nodes' https://.", **keep),
        click.Option(["--cert", "client_cert"], metavar="FILE", help="A certificate in the place of a token.", **keep),
        click.Option(["--cert-key"], metavar="FILE", help="The key of --cert.", **keep),
        click.Option(["--timeout"], metavar="SECONDS", help="For each call to the cluster.", **keep),
        click.Option(["-o", "--output"], type=click.Choice(["text", "json"]), help="What to print.", **keep),
        click.Option(
            ["--profile"],
            metavar="NAME",
            help=f"Take url, token-file, cacert and timeout from there; also {PROFILE_VARIABLE}.",
            **keep,
        ),
    ]


class Command(click.Command):
    """A command that takes the options in front of it for its own."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        known = {option for param in self.params for option in param.opts}
        in_front: list[str] = ctx.meta.get(_IN_FRONT, [])
        for option in in_front[::2]:
            if option not in known:
                raise click.UsageError(f"No such option: {option}", ctx)
        return super().parse_args(ctx, [*_from_profile(in_front, args, known), *in_front, *args])


class Group(click.Group):
    """A command with commands of its own, such as `kvnode lease`."""

    command_class = Command

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.extend(options_in_front())


def _from_profile(in_front: list[str], args: list[str], known: set[str]) -> list[str]:
    """What the profile in use says, as options; nothing without one, or where a command asks no cluster."""
    name = _named(args) or dict(zip(in_front[::2], in_front[1::2], strict=True)).get("--profile")
    name = name or os.environ.get(PROFILE_VARIABLE)
    if not name or "--url" not in known:
        return []
    file = _profile_file()
    profile = _read(file).get("profiles", {}).get(name)
    if not isinstance(profile, dict):
        raise click.UsageError(f"{file} has no [profiles.{name}]")
    unknown = sorted(set(profile) - set(PROFILE_KEYS))
    if unknown:
        raise click.UsageError(f"[profiles.{name}] in {file} has {unknown[0]!r}; it may have {', '.join(PROFILE_KEYS)}")
    given: list[str] = []
    for key, value in profile.items():
        if PROFILE_KEYS[key] not in known:
            continue
        if key in ("token-file", "cacert"):
            value = str(file.parent / Path(str(value)).expanduser())
        given += [PROFILE_KEYS[key], ",".join(value) if isinstance(value, list) else str(value)]
    return given


def _named(args: list[str]) -> str | None:
    """The value of --profile among a command's own arguments, the last where there are several."""
    name = None
    for argument, following in zip_longest(args, args[1:]):
        if argument == "--":
            break
        if argument == "--profile":
            name = following
        elif argument.startswith("--profile="):
            name = argument.partition("=")[2]
    return name


def _profile_file() -> Path:
    home = os.environ.get("XDG_CONFIG_HOME")
    return (Path(home) if home else Path.home() / ".config") / "kvnode" / "config.toml"


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as e:
        raise click.UsageError(f"{file}, which has the profiles, cannot be read ({e.strerror})") from None
    except ValueError as e:
        raise click.UsageError(f"{file}, which has the profiles, is no TOML ({e})") from None
