"""`kvnode serve`: one node. Its options are those of `kvnode/config/layers.py`, one to one."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from kvnode.cli import hung_up
from kvnode.cli.command import Command
from kvnode.config import layers
from kvnode.config.options import OPTIONS
from kvnode.errors import StartupError


def serve_parameters() -> list[click.Parameter]:
    """Every option as plain text: its meaning, its checks and its default belong to the configuration alone."""
    options: list[click.Parameter] = [
        click.Option(
            ["--config"], metavar="FILE.toml", help='Read options from a file; node-id = "n1" is --node-id n1.'
        )
    ]
    for option in OPTIONS:
        default = f" [default: {option.default}]" if option.default and not option.switch else ""
        if option.switch:
            options.append(click.Option([f"--{option.name}"], is_flag=True, default=None, help=option.help))
        else:
            options.append(click.Option([f"--{option.name}"], metavar=option.metavar, help=option.help + default))
    return options


def given_options(given: dict[str, Any]) -> tuple[dict[str, str], Path | None]:
    """What click found on the command line, as `config.load` wants it: flags, and the file that --config names."""
    file = given.pop("config") or os.environ.get("KVNODE_CONFIG")
    flags = {
        name.replace("_", "-"): "on" if value is True else value for name, value in given.items() if value is not None
    }
    return flags, Path(file) if file else None


def _run(**given: Any) -> int:
    """Run one node.

    Every option can be set in the environment, --node-id as KVNODE_NODE_ID, and in --config FILE.toml, as node-id;
    an option given here beats the environment beats the file.
    """
    flags, file = given_options(given)
    try:
        settings = layers.load(flags, os.environ, file)
    except StartupError as e:
        print(f"kvnode: {e.message}", file=sys.stderr)
        return 2
    from kvnode.server import run  # aiohttp and the Raft core, not worth loading to refuse an option

    return run.run(settings, hung_up)


serve = Command("serve", params=serve_parameters(), callback=_run, help=_run.__doc__)
