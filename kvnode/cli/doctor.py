"""`kvnode doctor`: looks at a machine, a node's options and the cluster, and says what to do."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

import click

from kvnode import config
from kvnode.cli.calls import finish, output_option, print_json, where_option
from kvnode.cli.serve import given_options, serve_parameters
from kvnode.errors import StartupError

if TYPE_CHECKING:
    from kvnode.doctor.finding import Finding

COLOURS: Final = {"ok": "green", "warning": "yellow", "problem": "red"}


def _run(url: str, output: str, **given: Any) -> int:
    """Examine this machine, a node's options and the cluster.

    Takes the options of `kvnode serve`, from the same places, and looks at what a node with them would need: names,
    ports, disk, limits, secret. Then asks the cluster at --url how it is. Each finding is one sentence. The disk is
    written to for a moment; nothing else is changed. Exit codes: 0 no problem (warnings aside), 1 a problem, 2 usage.
    """
    flags, file = given_options(given)
    try:
        settings = config.load(flags, os.environ, file)
    except StartupError as e:
        print(f"kvnode: {e.message}", file=sys.stderr)
        return 2
    secret = flags.get("cluster-secret-file") or os.environ.get("KVNODE_CLUSTER_SECRET_FILE")
    urls = [each.strip() for each in url.split(",") if each.strip()]
    findings = finish(_examine(settings, secret, urls))
    if output == "json":
        print_json([asdict(finding) for finding in findings])
    else:
        _print(findings)
    return 1 if any(finding.level == "problem" for finding in findings) else 0


async def _examine(settings: config.Config, secret: str | None, urls: list[str]) -> list[Finding]:
    from kvnode.client import Access, Client  # aiohttp and the Raft core, not worth loading to print --help
    from kvnode.doctor import machine, network

    findings = [machine.versions(), machine.file_limit(), *machine.disk(settings.data_dir)]
    findings += [finding for finding in (machine.secret_file(secret),) if finding is not None]
    # As the node itself would: with its token, and trusting whom it trusts.
    access = Access(settings.security.token, settings.security.tls_ca)
    async with Client(urls, access=access) as client:
        findings += await network.names(settings)
        findings += await network.ports(client, settings)
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
