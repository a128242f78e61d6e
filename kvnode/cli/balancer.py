"""The HAProxy in front of `kvnode dev`: the rules of `haproxy/haproxy.cfg`, with this cluster's addresses.

A test holds the two together, directive by directive. The reasons for each figure stand in that file.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from kvnode.errors import StartupError

CHECK_S: Final = 5.0

_TEMPLATE: Final = """\
# Written by `kvnode dev` at every start, for this cluster's ports. haproxy/haproxy.cfg in kvnode's sources is the one
# to take along: the same rules, with names instead of ports, and the reason for each figure.

global
  log stdout format raw local0 notice
  tune.bufsize 65536
  maxconn 4096

defaults
  mode http
  log global
  option dontlognull

  timeout connect 500ms
  # Longer than a node's own deadline: the node's answer knows the outcome, HAProxy's could not.
  timeout server 15s
  timeout client 30s
  timeout http-request 10s
  timeout http-keep-alive 30s
  timeout queue 2s
  # The leader probe takes up to 500 ms to hear from a majority.
  timeout check 700ms

  # A verdict is at most 500 ms old; a server about to change is asked again after 250 ms; one good answer is enough.
  default-server inter 500ms fastinter 250ms downinter 500ms rise 1 fall 2

  # Another attempt, on another node, only where nothing was applied: no connection, or a 503.
  retries 3
  option redispatch 1
  retry-on conn-failure 503
  option http-buffer-request

  # A read whose client has closed ends at once: a node would have an etcd watch until something happens to its keys.
  option abortonclose

  # HAProxy's own errors, in the words of the nodes.
  http-error status 502 content-type application/json string '@502@'
  http-error status 503 content-type application/json string '@503@' hdr Retry-After 1 hdr Cache-Control no-store
  http-error status 504 content-type application/json string '@504@'

frontend clients
  bind 127.0.0.1:@clients@
  http-request set-header X-Forwarded-For %[src]
  acl reads method GET HEAD
  acl stale_ok url_param(consistency) -m str stale
  acl watching path /v1/watch
  # etcd's API reads by POST as well. Its watches may be silent for ever.
  acl reads path /v3/kv/range /v3/lease/timetolive /v3/cluster/member/list /v3/maintenance/status
  acl etcd_watching path /v3/watch /v3beta/watch
  option clitcpka
  use_backend etcd_watches if etcd_watching { nbsrv(etcd_watches) gt 0 }
  use_backend watches if reads watching { nbsrv(watches) gt 0 }
  use_backend stale if reads stale_ok { nbsrv(stale) gt 0 }
  use_backend reads if reads
  default_backend writes

# Only steers: who leads, by the word of a majority? "Not leader" is a fact, not a hiccup, hence fall 1.
backend leader
  option httpchk
  http-check send meth GET uri /admin/healthz/leader ver HTTP/1.1 hdr Host kvnode
  http-check expect status 200
  default-server fall 1
@checked@

# The leader if it is known, else any node that can forward the request or hold it.
backend writes
  balance roundrobin
  no option abortonclose
  option httpchk
  http-check send meth GET uri /readyz?exclude=leader&exclude=applied_lag ver HTTP/1.1 hdr Host kvnode
  http-check expect status 200 error-status L7OKC
@leader_first@
  default-server on-marked-down shutdown-sessions
@checked@

# As `writes`, but a read may be sent again whatever became of it.
backend reads
  balance roundrobin
  retry-on conn-failure empty-response response-timeout 503
@leader_first@
  default-server on-marked-down shutdown-sessions
@tracking@

# Any ready node in turn.
backend stale
  balance roundrobin
  retry-on conn-failure empty-response response-timeout 503
  option httpchk
  http-check send meth GET uri /readyz ver HTTP/1.1 hdr Host kvnode
  http-check expect status 200 error-status L7OKC
  default-server on-marked-down shutdown-sessions
@checked@

# Any ready node, the one with the fewest. A stream says something every 10 s, a long poll nothing for up to 60 s.
backend watches
  balance leastconn
  timeout server 75s
  retry-on conn-failure empty-response 503
  default-server on-marked-down shutdown-sessions
@tracking_stale@

# etcd's watches: nothing is in such a stream but events, so silence says nothing.
backend etcd_watches
  balance leastconn
  timeout server 24h
  option srvtcpka
  default-server on-marked-down shutdown-sessions
@tracking_stale@

frontend statistics
  bind 127.0.0.1:@statistics@
  http-request use-service prometheus-exporter if { path /metrics }
  stats enable
  stats uri /stats
  stats refresh 2s
  http-request redirect location /stats if { path / }
"""

_SEND_AGAIN: Final = "A write may have been applied: read it back, or send it again with the same Idempotency-Key."
_BROKEN: Final = f"The connection to the node broke before its answer came. {_SEND_AGAIN}"
_LATE: Final = f"The node did not answer in time. {_SEND_AGAIN}"
_NOBODY: Final = "No node takes requests now. Nothing was applied: send it again."
_BODIES: Final = {
    "502": f'{{"error":"outcome_unknown","message":"{_BROKEN}","outcome":"unknown"}}',
    "503": f'{{"error":"no_leader","message":"{_NOBODY}","outcome":"not_applied"}}',
    "504": f'{{"error":"outcome_unknown","message":"{_LATE}","outcome":"unknown"}}',
}


def render(nodes: Mapping[str, int], clients_port: int, statistics_port: int) -> str:
    """The configuration for nodes (name to HTTP port) on 127.0.0.1."""
    addresses = {name: f"127.0.0.1:{port}" for name, port in nodes.items()}
    texts = {
        **_BODIES,
        "clients": str(clients_port),
        "statistics": str(statistics_port),
        "checked": "\n".join(f"  server {name} {address} check" for name, address in addresses.items()),
        "tracking": "\n".join(f"  server {name} {address} track writes/{name}" for name, address in addresses.items()),
        "tracking_stale": "\n".join(
            f"  server {name} {address} track stale/{name}" for name, address in addresses.items()
        ),
        "leader_first": "\n".join(f"  use-server {name} if {{ srv_is_up(leader/{name}) }}" for name in addresses),
    }
    config = _TEMPLATE
    for name, text in texts.items():
        config = config.replace(f"@{name}@", text)
    return config


_STATE: Final = re.compile(r"Server (\w+)/(\w+) is (UP|DOWN)\b(?:.*?, reason: ([^,.]*))?")
_EMPTY: Final = re.compile(r"backend '?(\w+)'? has no server available")
_ON_STDERR: Final = re.compile(r"\[(NOTICE|WARNING|ALERT)\]")


def readable(line: str) -> str | None:
    """HAProxy's log line in this cluster's words; None for what says nothing new: it watches each node four times."""
    if _ON_STDERR.match(line) and (_STATE.search(line) or _EMPTY.search(line)):
        return None  # in the foreground, HAProxy repeats on stderr what it logs
    if state := _STATE.search(line):
        backend, node, is_up, reason = state[1], state[2], state[3] == "UP", state[4]
        if backend == "leader":
            return f"{node} leads: writes and reads go there." if is_up else None
        if backend == "writes":
            return f"{node} is back." if is_up else f"{node} gets no requests ({reason or 'down'})."
        return None
    if empty := _EMPTY.search(line):
        if empty[1] == "leader":
            return "no leader: any ready node takes requests, to forward or to hold them."
        return "no node is ready." if empty[1] == "writes" else None
    return line


def program() -> str | None:
    """Where HAProxy is, None where it is not installed. Debian keeps it out of the PATH of ordinary users."""
    return shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin")


def write_checked(haproxy: str, file: Path, config: str) -> None:
    """Writes the configuration and has HAProxy check it; raises StartupError with HAProxy's own words."""
    file.write_text(config)
    try:
        checked = subprocess.run(
            [haproxy, "-c", "-q", "-f", str(file)], capture_output=True, timeout=CHECK_S, check=False, text=True
        )
    except (OSError, subprocess.TimeoutExpired) as e:
        raise StartupError(f"HAProxy ({haproxy}) cannot be run: {e}; go on without it with --lb off.") from None
    if checked.returncode != 0:
        words = " ".join(checked.stderr.split()) or f"exit code {checked.returncode}"
        raise StartupError(f"HAProxy does not take {file}: {words}; HAProxy 2.6 or later is needed, or --lb off.")
