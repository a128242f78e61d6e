"""Names, ports and the cluster as it answers: what a node needs of the network, asked from where it would run."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import urlsplit

from kvnode import __version__
from kvnode.client import Client
from kvnode.client.answers import Answer, cluster_of
from kvnode.config.layers import Config
from kvnode.config.values import HostPort, show_host_port
from kvnode.errors import KvnodeError
from kvnode.tools.doctor.finding import (
    Finding,
    ok,
    problem,
    warning,
)

WAIT_S: Final = 2.0
# Nothing in kvnode goes by the wall clock; certificates do, and whoever reads two nodes' logs side by side.
SKEW_MAX_S: Final = 1.0
# What a node says of such a voter, in its own readiness and in that of the others (`node/promises.py`).
FORGETFUL: Final = re.compile(r"the data directory of node (\S+) is empty, and it has acknowledged writes")
CLUSTER: Final = "/admin/api/v1/cluster"


async def names(config: Config) -> Iterable[Finding]:
    """Every host that this node is told to use has an address."""
    hosts = {host: f"--peers {name}" for name, (host, _) in config.peers.items()}
    hosts |= {urlsplit(config.advertise_http).hostname or "": "--advertise-http"}
    return await asyncio.gather(*(_name(host, source) for host, source in hosts.items() if host))


async def _name(host: str, source: str) -> Finding:
    try:
        async with asyncio.timeout(WAIT_S):
            found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except TimeoutError:
        return problem("names", f"The name server did not answer for {host} ({source}) in time: mend name resolution.")
    except OSError:
        return problem("names", f"{host} ({source}) has no address: add it to DNS or /etc/hosts, or correct {source}.")
    return ok("names", f"{host} is {', '.join(sorted({str(each[4][0]) for each in found}))}.")


async def ports(client: Client, config: Config) -> Iterable[Finding]:
    """This node's two ports are free, or the node has them; its peers can be dialled."""
    scheme = "https" if config.security.tls else "http"
    mine = await client.look(f"{scheme}://{show_host_port(config.http)}", "/admin/healthz", WAIT_S)
    runs = mine is not None and mine.headers.get("Kvnode-Node") == config.node_id
    own = {"http": config.http, "raft": config.raft, "probes": config.security.probes}
    findings = [_port(option, address, runs, config.node_id) for option, address in own.items() if address]
    others = {name: address for name, address in config.peers.items() if name != config.node_id}
    return findings + list(await asyncio.gather(*(_peer(name, address) for name, address in others.items())))


def _port(option: str, address: HostPort, runs: bool, node_id: str) -> Finding:
    where = show_host_port(address)
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as trial:
        trial.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
        )  # as the node does: connections that linger are none
        try:
            trial.bind(address)
        except PermissionError:
            return problem("ports", f"This user may not listen on {where}: choose a port from 1024 up with --{option}.")
        except socket.gaierror:
            return problem("ports", f"{where} has no address here: correct --{option}.")
        except OSError as error:
            if runs:
                return ok("ports", f"{where} is {node_id}'s own, which runs.")
            return problem(
                "ports", f"{where} cannot be had ({error.strerror}): stop what uses it, or change --{option}."
            )
    return ok("ports", f"{where} is free for --{option}.")


async def _peer(name: str, address: HostPort) -> Finding:
    where = show_host_port(address)
    try:
        async with asyncio.timeout(WAIT_S):
            _, writer = await asyncio.open_connection(*address)
    except (OSError, TimeoutError):
        return warning(
            "peers", f"Nobody takes a connection at {name}'s Raft address {where}: start it, or open the way."
        )
    writer.close()
    return ok("peers", f"{name} takes connections at {where}.")


async def cluster(client: Client, urls: Iterable[str]) -> Iterator[Finding]:
    """The cluster behind the URLs: who leads, whether all are well and alike, and what time they have."""
    bodies = [body for url in urls if (body := await _node_at(client, url)) is not None]
    if not bodies:
        return iter((await _not_seen(client),))
    findings: list[Finding] = []
    group = bodies[0]["groups"][0]
    if group["leader_id"] is None:
        down = [member["id"] for member in group["members"] if not member["reachable"]]
        findings.append(
            problem("cluster", f"No leader is known; start the members that are down: {' '.join(down) or '-'}.")
        )
    else:
        findings.append(
            ok("cluster", f"{group['leader_id']} leads {len(group['members'])} members in term {group['term']}.")
        )
    forgetful = await _forgetful(client, [*urls, *(member["http"] for member in group["members"] if member["http"])])
    findings += [
        problem(
            "cluster",
            f"{name} has lost its data directory and does not vote: the leader makes a learner of it by itself once a "
            f"majority of the others answers; start those, or run 'kvnode member replace {name}'.",
        )
        for name in sorted(forgetful)
    ]
    well = [member for member in group["members"] if member["id"] not in forgetful]
    findings += await asyncio.gather(*(_member(client, member) for member in well))
    return iter(findings)


async def _forgetful(client: Client, urls: Iterable[str]) -> set[str]:
    """The voters that the nodes there, these voters among them, say have forgotten what they promised."""
    answers = await asyncio.gather(*(client.look(url, "/readyz", WAIT_S) for url in dict.fromkeys(urls)))
    said = (answer.body.decode(errors="replace") for answer in answers if answer is not None)
    return {name for text in said for name in FORGETFUL.findall(text)}


async def _not_seen(client: Client) -> Finding:
    """Why there is no cluster to look at."""
    try:
        await client.cluster()
    except KvnodeError as e:
        if e.code == "not_allowed":
            return problem("cluster", f"{e.message} Give the --token-file that the cluster's nodes have.")
        return warning("cluster", f"{e.message} Start a node, or name another with --url.")
    return warning("cluster", "The cluster answers now and then alone: look again, and at its load.")


async def _member(client: Client, member: Mapping[str, Any]) -> Finding:
    name, url = member["id"], member["http"]
    if not member["reachable"]:
        return problem(
            "cluster", f"The others do not reach {name} at {member['raft']}: start it, or open the way there."
        )
    if url is None:
        return warning("cluster", f"{name} has not said where its HTTP is.")
    sent_at = datetime.now(UTC)
    body, ready = await asyncio.gather(_node_at(client, url), client.look(url, "/readyz", WAIT_S))
    took_s = (datetime.now(UTC) - sent_at).total_seconds()
    if body is None or ready is None:
        return warning(
            "cluster", f"{name} does not answer at {url} from here: correct its --advertise-http, or open the way."
        )
    skew_s = (datetime.fromisoformat(body["timestamp"]) - sent_at).total_seconds()
    if ready.status != 200:
        return problem("cluster", f"{name} is not ready: {_message(ready)}.")
    if not -SKEW_MAX_S <= skew_s <= took_s + SKEW_MAX_S:
        return warning(
            "clocks", f"The clock of {name} differs from this machine's by {skew_s:+.1f} s: let NTP set both."
        )
    if body["version"] != __version__:
        return warning("versions", f"{name} runs kvnode {body['version']}, this is {__version__}: end the upgrade.")
    return ok("cluster", f"{name} is ready, runs {body['version']}, and its clock agrees.")


async def _node_at(client: Client, url: str) -> dict[str, Any] | None:
    """What the node there says of its cluster; None where none answers, or what answers is none."""
    answer = await client.look(url, CLUSTER, WAIT_S)
    try:
        return cluster_of(answer) if answer is not None and answer.status == 200 else None
    except KvnodeError:
        return None


def _message(answer: Answer) -> str:
    try:
        return str(json.loads(answer.body)["message"])
    except (ValueError, TypeError, LookupError):
        return f"its probe says {answer.status}"
