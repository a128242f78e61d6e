"""`kvnode doctor`: looks at a machine, a node's options and the cluster, and says what to do."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from kvnode.cli.calls import finish, output_option, print_json, urls_in, where_option
from kvnode.cli.serve import given_options, serve_parameters
from kvnode.config import layers
from kvnode.errors import StartupError

if TYPE_CHECKING:
    from kvnode.tools.doctor.finding import Finding

# What nobody else on the machine should be able to read. A node refuses the first kind, and warns of the second.
SECRETS: Final = ("cluster-secret-file", "session-key-file", "token-file")
KEYS: Final = ("tls-key", "raft-key")
COLOURS: Final = {"ok": "green", "warning": "yellow", "problem": "red"}


def _run(url: str, output: str, **given: Any) -> int:
    """Examine this machine, a node's options and the cluster.

    Takes the options of `kvnode serve`, from the same places, and looks at what a node with them would need: names,
    ports, disk, limits, secrets. Then asks the cluster at --url how it is, with the node's own token and --tls-ca. Each
    finding is one sentence. The disk is written to for a moment; nothing else is changed. Exit codes: 0 no problem
    (warnings aside), 1 a problem, 2 usage.
    """
    flags, file = given_options(given)
    try:
        settings = layers.load(flags, os.environ, file)
    except StartupError as e:
        print(f"kvnode: {e.message}", file=sys.stderr)
        return 2
    private = [
        (path, option in SECRETS)
        for option in (*SECRETS, *KEYS)
        if (path := flags.get(option) or os.environ.get("KVNODE_" + option.replace("-", "_").upper()))
    ]
    urls = urls_in(url)
    findings = finish(_examine(settings, private, urls))
    if output == "json":
        print_json([asdict(finding) for finding in findings])
    else:
        _print(findings)
    return 1 if any(finding.level == "problem" for finding in findings) else 0


async def _examine(settings: layers.Config, private: list[tuple[str, bool]], urls: list[str]) -> list[Finding]:
    from kvnode.client import Access, Client  # aiohttp and the Raft core, not worth loading to print --help
    from kvnode.tools.doctor import machine, network

    findings = [machine.versions(), machine.file_limit(), *machine.disk(settings.data_dir)]
    findings += [machine.private_file(path, refused) for path, refused in private]
    security, ca = settings.security, os.environ.get("KVNODE_CACERT")
    trusted = security.tls_ca or (Path(ca) if ca else None)
    findings += await network.names(settings)
    async with Client(urls, access=Access("", trusted)) as client:  # whoever has our port gets no token from us
        findings += await network.ports(client, settings)
    async with Client(urls, access=Access(security.token, trusted)) as client:
        findings += await network.cluster(client, urls)
    return findings


def _print(findings: Iterable[Finding]) -> None:
    """One line each; the level in colour on a terminal, parted by tabs to a pipe."""
    on_terminal = sys.stdout.isatty()
    coloured = on_terminal and not os.environ.get("NO_COLOR")
    for finding in findings:
        if not on_terminal:
            print(finding.level, finding.check, finding.message, sep="\t")
            continue
        level = click.style(f"{finding.level:8}", fg=COLOURS[finding.level]) if coloured else f"{finding.level:8}"
        print(f"{level} {finding.check:9} {finding.message}")


doctor = where_option(
    output_option(click.Command("doctor", params=serve_parameters(), callback=_run, help=_run.__doc__))
)
