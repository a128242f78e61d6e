"""The links between nodes, which can be cut in one direction or both, broken by halves, and slowed down.

`Network` gives each node a network namespace of its own on one bridge. A cut is a wrong link address: the sender's
kernel is told to send the receiver's frames to a card that does not exist. Nothing is refused and nothing is reported,
packets just never arrive, as behind a broken switch. It needs no firewall module, works at once for connections that
exist, and goes one way as easily as both. Clients are in the root namespace, at the bridge: a node that is cut off from
its peers still hears them; one that is unplugged does not.

That takes root. Names carry this process's id, and `close` takes all of it away. `Relays` needs no root: nodes on
loopback dial each other through relays of this process (tests/relays.py). There what is cut waits, as it would for a
sender that repeats it, and there is latency; clients are out of its reach.
"""

from __future__ import annotations

import ipaddress
import os
import random
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from tests.cluster import Cluster, Node
from tests.relays import RelayedCluster

HTTP_PORT, RAFT_PORT = 8001, 7001
NOBODY = "02:00:5e:00:00:01"  # locally administered, and no card here has it
SECRET = "only for the nodes of this one test run"


class Impossible(Exception):
    """This machine or this user cannot make network namespaces; the message says why."""


def ip(*arguments: str) -> str:
    """Runs one `ip` command. Raises Impossible with what it said."""
    return _command("ip", *arguments)


def _command(*words: str) -> str:
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=False)
    except FileNotFoundError:
        raise Impossible(f"there is no `{words[0]}` command (iproute2) here") from None
    if done.returncode != 0:
        raise Impossible(f"`{' '.join(words)}` failed: {done.stderr.strip()}")
    return done.stdout


class Links(ABC):
    """What both kinds of network can do to the links between `names`."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = list(names)
        self._cut: set[tuple[str, str]] = set()

    @abstractmethod
    def cut(self, sender: str, receiver: str) -> None:
        """What `sender` sends to `receiver` gets lost; the other direction is as it was."""

    @abstractmethod
    def halve(self, one: str, other: str) -> None:
        """The side of `one` of its connections with `other` breaks, and `other` does not hear of it."""

    @abstractmethod
    def slow(self, name: str) -> None:
        """What this node sends takes long to arrive."""

    @abstractmethod
    def heal(self) -> None:
        """Everybody reaches everybody again, at once."""

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

    def connected(self, one: str, other: str) -> bool:
        """What either sends arrives at the other."""
        return not {(one, other), (other, one)} & self._cut

    def _peers(self, name: str) -> list[str]:
        return [peer for peer in self.names if peer != name]


class Network(Links):
    """The bridge, and a namespace for each of `names`. Raises Impossible, and then leaves nothing behind."""

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__(names)
        if os.geteuid() != 0:
            raise Impossible("network namespaces need root")
        self._bridge = f"kvc{os.getpid()}"
        self._unplugged: set[str] = set()
        self._slowed: set[str] = set()
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
        if (sender, receiver) not in self._cut:
            self._cut.add((sender, receiver))
            link = ("lladdr", NOBODY, "dev", "eth0", "nud", "permanent")
            ip("-n", self._namespace(sender), "neigh", "replace", self.addresses[receiver], *link)

    def halve(self, one: str, other: str) -> None:
        """The reset that a broken side sends is lost; afterwards the link is whole."""
        fresh = (one, other) not in self._cut
        self.cut(one, other)
        peer = self.addresses[other]
        _command("ip", "netns", "exec", self._namespace(one), "ss", "--kill", "--tcp", "dst", peer)
        if fresh:
            self._mend(one, other)

    def slow(self, name: str) -> None:
        """Half a megabit a second, so that more than heartbeats queues up for hundreds of milliseconds."""
        shape = ("tbf", "rate", "512kbit", "burst", "16kb", "latency", "800ms")
        _command("tc", "-n", self._namespace(name), "qdisc", "replace", "dev", "eth0", "root", *shape)
        self._slowed.add(name)

    def unplug(self, name: str) -> None:
        """Nobody reaches it, clients neither."""
        ip("link", "set", self._port(name), "down")
        self._unplugged.add(name)

    def heal(self) -> None:
        for sender, receiver in sorted(self._cut):
            self._mend(sender, receiver)
        for name in sorted(self._unplugged):
            ip("link", "set", self._port(name), "up")
        self._unplugged.clear()
        for name in sorted(self._slowed):
            _command("tc", "-n", self._namespace(name), "qdisc", "del", "dev", "eth0", "root")
        self._slowed.clear()

    def _mend(self, sender: str, receiver: str) -> None:
        ip("-n", self._namespace(sender), "neigh", "del", self.addresses[receiver], "dev", "eth0")
        self._cut.discard((sender, receiver))

    def connected(self, one: str, other: str) -> bool:
        return super().connected(one, other) and not {one, other} & self._unplugged

    def command(self, name: str, command: list[str]) -> list[str]:
        """The command, to be run inside the node's namespace; its process id is the one that is started."""
        return ["ip", "netns", "exec", self._namespace(name), *command]

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
        self.args = (*self.args, "--insecure")  # off loopback, and on a bridge that only this machine reaches
        self.env = {**self.env, "KVNODE_CLUSTER_SECRET": SECRET}

    def _node(self, name: str, http: int, raft: int) -> Node:
        node = super()._node(name, http, raft)
        address = self.network.addresses[name]
        node.http, node.raft = (address, HTTP_PORT), (address, RAFT_PORT)
        return node

    def command(self, name: str) -> list[str]:
        return self.network.command(name, super().command(name))


class Relays(Links):
    """The relays of a cluster on loopback. What its nodes know of each other's addresses must not change."""

    def __init__(self, cluster: RelayedCluster) -> None:
        super().__init__(cluster.nodes)
        self._links = cluster.links

    def cut(self, sender: str, receiver: str) -> None:
        self._cut.add((sender, receiver))
        self._links[sender, receiver].hold()

    def halve(self, one: str, other: str) -> None:
        self._links[one, other].lose_the_dialler()

    def slow(self, name: str, delay_s: float = 0.06) -> None:
        for peer in self._peers(name):
            self._links[name, peer].delay_s = delay_s

    def heal(self) -> None:
        for pair in self._cut:
            self._links[pair].release()
        self._cut.clear()
        for link in self._links.values():
            link.delay_s = 0.0
