"""The options of `kvnode serve`, and what was given of them: flags beat the environment beats the file beats defaults.

Every option has one name: `--node-id` on the command line is `KVNODE_NODE_ID` in the environment and
`node-id` in the file.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from kvnode.config import values
from kvnode.config.values import Malformed
from kvnode.errors import StartupError


@dataclass(frozen=True, slots=True)
class Option:
    """One option of `kvnode serve`; `default` is text as a user would write it, None where it depends or is absent."""

    name: str
    metavar: str
    default: str | None
    help: str
    switch: bool = False

    @property
    def variable(self) -> str:
        return "KVNODE_" + self.name.replace("-", "_").upper()


OPTIONS: Final = (
    Option("node-id", "NAME", "n1", "This node's name in the cluster."),
    Option("http", "HOST:PORT", "127.0.0.1:8001", "Where HTTP listens."),
    Option("raft", "HOST:PORT", "127.0.0.1:7001", "Where Raft listens."),
    Option("peers", "n1=HOST:PORT,…", None, "Every member of the first cluster, this node included [default: alone]."),
    Option("join", "URL[,URL…]", None, "Nodes of a running cluster to become a member of, instead of --peers."),
    Option("advertise-raft", "HOST:PORT", None, "With --join: where peers dial this node [default: from --raft]."),
    Option("advertise-http", "URL", None, "How others reach this node's HTTP [default: from --http]."),
    Option("data-dir", "DIR", None, "Journal, snapshots, identity [default: ./kvnode-data/<node-id>]."),
    Option("cluster-secret-file", "FILE", None, "Proves a peer belongs; required once Raft listens off loopback."),
    Option("session-key-file", "FILE", None, "Signs admin sessions, for all nodes [default: the cluster makes one]."),
    Option("cluster-id", "NAME", None, "The cluster's name; all members must agree [default: from --peers]."),
    Option("fsync", "always|interval|never", "always", "When the journal reaches the disk."),
    Option("leader-probe", "on|off", "on", "Whether /admin/healthz/leader exists."),
    Option("probe-timeout", "DURATION", "500ms", "How long the leader probe waits for a majority, 10ms to 10s."),
    Option("election-timeout", "MIN-MAX", "600-1200ms", "Silence after which a node stands for election."),
    Option("heartbeat", "DURATION", "100ms", "How often a leader speaks; below a third of the shortest election."),
    Option("log-format", "text|json", "text", "What a log line looks like."),
    Option("log-level", "debug|info|warning|error", "info", "The least severe line to log."),
    Option("log-requests", "", "off", "Also log a line for each request, with its X-Request-Id.", switch=True),
    Option("otel", "", "off", "Export a span for each request (kvnode[otel]); OTEL_… variables.", switch=True),
    Option("token-file", "FILE", None, "HTTP asks for tokens; this is the first one, with the role admin."),
    Option("insecure", "", "off", "Allow HTTP to listen off loopback without asking for tokens.", switch=True),
    Option("tls-cert", "FILE", None, "HTTP speaks TLS with this certificate; SIGHUP reads it again."),
    Option("tls-key", "FILE", None, "The key of --tls-cert."),
    Option("tls-client-ca", "FILE", None, "The CA of clients' certificates. Each has the rights of its name's token."),
    Option("tls-ca", "FILE", None, "Who signs the certificates of other nodes' HTTP, for --join https://…"),
    Option("raft-cert", "FILE", None, "Raft speaks TLS with this certificate, which names this node."),
    Option("raft-key", "FILE", None, "The key of --raft-cert."),
    Option("raft-ca", "FILE", None, "Who signs the --raft-cert of every node."),
    Option(
        "allow-old-peers",
        "",
        "off",
        "Also talk to nodes of kvnode 0.1, unprotected: for a rolling upgrade.",
        switch=True,
    ),
    Option("probes", "HOST:PORT", None, "A port of their own for probes and /metrics, without TLS and tokens."),
    Option("trusted-proxies", "NET[,NET…]", None, "Balancers whose X-Forwarded-For says who the client is."),
    Option("proxy-protocol", "", "off", "The trusted proxies begin with a PROXY protocol header.", switch=True),
    Option("rate-limit", "N", None, "Requests a second for each client's address [default: no limit]."),
    Option("max-connections", "N", "32768", "HTTP connections at a time."),
    Option("max-connections-per-client", "N", None, "The same for each client's address [default: half]."),
)


@dataclass(frozen=True, slots=True)
class Setting:
    """One value as it was given, and where."""

    name: str
    text: str
    source: str | None  # a variable or file; None for a flag or a default

    def refused(self, problem: object) -> StartupError:
        source = f" (from {self.source})" if self.source else ""
        return StartupError(f"--{self.name} {self.text!r}{source}: {problem}.")

    @property
    def switched_on(self) -> bool:
        return values.switch(self.text)


class Settings:
    """All given values, the strongest source first."""

    def __init__(self, flags: Mapping[str, str], environ: Mapping[str, str], file: Path | None) -> None:
        in_file = _read_file(file) if file else {}
        self._found: dict[str, Setting] = {}
        for option in OPTIONS:
            name = option.name
            if name in flags:
                self._found[name] = Setting(name, flags[name], None)
            elif environ.get(option.variable):  # an empty variable is how compose files say "not set"
                self._found[name] = Setting(name, environ[option.variable], option.variable)
            elif name in in_file:
                self._found[name] = Setting(name, in_file[name], str(file))
            elif option.default is not None:
                self._found[name] = Setting(name, option.default, None)

    def get(self, name: str) -> Setting | None:
        return self._found.get(name)

    def parse(self, name: str, parser: Any, *bounds: Any) -> Any:
        """The parsed value, None where the option is absent; a malformed one is a StartupError."""
        setting = self._found.get(name)
        if setting is None:
            return None
        try:
            return parser(setting.text, *bounds)
        except Malformed as problem:
            raise setting.refused(problem) from None

    def refused(self, name: str, problem: str) -> StartupError:
        setting = self._found.get(name)
        return setting.refused(problem) if setting else StartupError(f"--{name}: {problem}.")


def _read_file(file: Path) -> dict[str, str]:
    try:
        with file.open("rb") as f:
            table = tomllib.load(f)
    except OSError as e:
        raise StartupError(f"--config {str(file)!r} cannot be read: {e.strerror}; give a readable TOML file.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        problem = " ".join(str(e).split())
        raise StartupError(f'--config {str(file)!r} is not TOML: {problem}; write lines like node-id = "n1".') from None
    known = {option.name for option in OPTIONS}
    if unknown := sorted(set(table) - known):
        known_names = ", ".join(sorted(known))
        raise StartupError(f"--config {str(file)!r}: {unknown[0]!r} is no option; the options are {known_names}.")
    return {name: _toml_text(file, name, value) for name, value in table.items()}


def _toml_text(file: Path, name: str, value: object) -> str:
    """A TOML value as the flag's text: true and false for switches, `[peers]` as a table of addresses."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, str):
        return value
    if name == "peers" and isinstance(value, dict) and all(isinstance(v, str) for v in value.values()):
        return ",".join(f"{k}={v}" for k, v in cast("dict[str, str]", value).items())
    raise StartupError(f"--config {str(file)!r}: {name} must be text in quotes, as on the command line.")
