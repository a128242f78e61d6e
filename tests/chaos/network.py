"""A network for each node: namespaces of their own on one bridge, whose links can be cut in one direction or both.

A cut is a wrong link address: the sender's kernel is told to send the receiver's frames to a card that does not
exist. Nothing is refused and nothing is reported, packets just never arrive, as behind a broken switch. It needs no
firewall module, works at once for connections that exist, and goes one way as easily as both. Clients are in the
root namespace, at the bridge: a node that is cut off from its peers still hears them; one that is unplugged does not.

Everything here takes root. Names carry this process's id, and `close` takes all of it away.
"""

from __future__ import annotations

import ipaddress
import os
import random
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from tests.cluster import Cluster

HTTP_PORT, RAFT_PORT = 8001, 7001
NOBODY = "02:00:5e:00:00:01"  # locally administered, and no card here has it
SECRET = "only for the nodes of this one test run"


class Impossible(Exception):
    """This machine or this user cannot make network namespaces; the message says why."""


def ip(*arguments: str) -> str:
    """Runs one `ip` command. Raises Impossible with what it said."""
    try:
        done = subprocess.run(["ip", *arguments], capture_output=True, text=True, timeout=20, check=False)
    except FileNotFoundError:
        raise Impossible("there is no `ip` command (iproute2) here") from None
    if done.returncode != 0:
        raise Impossible(f"`ip {' '.join(arguments)}` failed: {done.stderr.strip()}")
    return done.stdout


class Network:
    """The bridge, and a namespace for each of `names`. Raises Impossible, and then leaves nothing behind."""

    def __init__(self, names: Iterable[str]) -> None:
        if os.geteuid() != 0:
            raise Impossible("network namespaces need root")
        self.names = list(names)
        self._bridge = f"kvc{os.getpid()}"
        self._cut: set[tuple[str, str]] = set()
        self._unplugged: set[str] = set()
        subnet = _free_subnet()
        self.addresses = {name: str(subnet[11 + number]) for number, name in enumerate(self.names)}
        self._gateway = f"{subnet[1]}/{subnet.prefixlen}"
        try:
            self._build(subnet.prefixlen)
        except BaseException:
            self.close()
            raise

    def _build(self, prefix: int) -> None:
        ip("link", "add", self._bridge, "type", "bridge")
        ip("addr", "add", self._gateway, "dev", self._bridge)
        ip("link", "set", self._bridge, "up")
        for name in self.names:
            namespace = self._namespace(name)
            ip("netns", "add", namespace)
            ip("link", "add", self._port(name), "type", "veth", "peer", "name", "eth0", "netns", namespace)
            ip("link", "set", self._port(name), "master", self._bridge, "up")
            ip("-n", namespace, "addr", "add", f"{self.addresses[name]}/{prefix}", "dev", "eth0")
            ip("-n", namespace, "link", "set", "eth0", "up")
            ip("-n", namespace, "link", "set", "lo", "up")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Takes everything away that is there; never raises."""
        for name in self.names:
            _try("link", "del", self._port(name))
            _try("netns", "del", self._namespace(name))
        _try("link", "del", self._bridge)

    # --- the verbs ------------------------------------------------------------------------------------------------

    def cut(self, sender: str, receiver: str) -> None:
        """What `sender` sends to `receiver` gets lost; the other direction is as it was."""
        if (sender, receiver) not in self._cut:
            self._cut.add((sender, receiver))
            link = ("lladdr", NOBODY, "dev", "eth0", "nud", "permanent")
            ip("-n", self._namespace(sender), "neigh", "replace", self.addresses[receiver], *link)

    def partition(self, one: Iterable[str], other: Iterable[str]) -> None:
        """Nothing passes between the two sides, in neither direction."""
        others = list(other)
        for name in one:
            for peer in others:
                self.cut(name, peer)
                self.cut(peer, name)

    def isolate(self, name: str) -> None:
        """Cut off from every peer; clients still reach it."""
        self.partition([name], self._peers(name))

    def deafen(self, name: str) -> None:
        """It speaks to its peers and hears none of them."""
        for peer in self._peers(name):
            self.cut(peer, name)

    def mute(self, name: str) -> None:
        """It hears its peers, and none of them hears it."""
        for peer in self._peers(name):
            self.cut(name, peer)

    def unplug(self, name: str) -> None:
        """Nobody reaches it, clients neither."""
        ip("link", "set", self._port(name), "down")
        self._unplugged.add(name)

    def heal(self) -> None:
        """Everybody reaches everybody again."""
        for sender, receiver in sorted(self._cut):
            ip("-n", self._namespace(sender), "neigh", "del", self.addresses[receiver], "dev", "eth0")
        self._cut.clear()
        for name in sorted(self._unplugged):
            ip("link", "set", self._port(name), "up")
        self._unplugged.clear()

    def connected(self, one: str, other: str) -> bool:
        """Packets pass in both directions."""
        whole = not {(one, other), (other, one)} & self._cut
        return whole and not {one, other} & self._unplugged

    def command(self, name: str, command: list[str]) -> list[str]:
        """The command, to be run inside the node's namespace; its process id is the one that is started."""
        return ["ip", "netns", "exec", self._namespace(name), *command]

    def _peers(self, name: str) -> list[str]:
        return [peer for peer in self.names if peer != name]

    def _namespace(self, name: str) -> str:
        return f"{self._bridge}-{name}"

    def _port(self, name: str) -> str:
        return f"{self._bridge}{name}"


def _try(*arguments: str) -> None:
    try:
        ip(*arguments)
    except (Impossible, subprocess.TimeoutExpired):
        pass


def _free_subnet() -> ipaddress.IPv4Network:
    """A /24 of 10.0.0.0/8 to which this machine has no other way than its default route."""
    taken = [line.split()[0] for line in ip("-o", "-4", "route", "show").splitlines()]
    networks = [ipaddress.ip_network(destination, strict=False) for destination in taken if destination[0].isdigit()]
    chance = random.SystemRandom()
    while True:
        subnet = ipaddress.IPv4Network(f"10.{chance.randint(128, 254)}.{chance.randint(1, 254)}.0/24")
        if not any(subnet.overlaps(network) for network in networks):
            return subnet


@dataclass(kw_only=True)
class NetworkedCluster(Cluster):
    """A cluster whose nodes are in `network`, each at an address of its own."""

    network: Network

    def __post_init__(self) -> None:
        super().__post_init__()
        for node in self.nodes.values():
            address = self.network.addresses[node.id]
            node.http, node.raft = (address, HTTP_PORT), (address, RAFT_PORT)
        self.args = (*self.args, "--insecure")  # off loopback, and on a bridge that only this machine reaches
        self.env = {**self.env, "KVNODE_CLUSTER_SECRET": SECRET}

    def command(self, name: str) -> list[str]:
        return self.network.command(name, super().command(name))
