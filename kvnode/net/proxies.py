"""Balancers that may say who their client is: by X-Forwarded-For, or by the PROXY protocol in front of a connection.

Only what comes from an address in the list is believed. From there, every connection begins with a PROXY header where
that protocol is on, and from elsewhere none does: whether there is one is never guessed (proxy-protocol.txt, 2).
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import struct
from dataclasses import dataclass
from typing import Final

V2_SIGNATURE: Final = b"\r\n\r\n\x00\r\nQUIT\n"
V1_BYTES_MAX: Final = 107
V2_BYTES_MAX: Final = 2_048  # what stands behind the 16 bytes at the front: addresses, and TLVs that are not read
HOPS_MAX: Final = 16

ADDRESS_CHARS_MAX: Final = 45  # an IPv6 address whose end is written as an IPv4 address

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def parse_address(text: str) -> Address | None:
    """An address and nothing else: no port, no brackets, no zero-padded numbers, and no scope id, behind whose '%' any
    text may stand. An IPv4 address inside an IPv6 one is that IPv4 address.
    """
    if len(text) > ADDRESS_CHARS_MAX or "%" in text or not text.isascii():
        return None
    try:
        parsed = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return mapped or parsed


class ProxyHeaderError(Exception):
    """The text is the rest of a sentence for the log."""


@dataclass(frozen=True, slots=True)
class Proxies:
    """The addresses that are believed. `prefaced`: they begin their connections with a PROXY header."""

    networks: tuple[Network, ...]
    prefaced: bool

    def trusts(self, address: str) -> bool:
        """Whether a connection from there is believed. The kernel names a link-local address with its interface."""
        parsed = parse_address(address.partition("%")[0])
        return parsed is not None and self._believes(parsed)

    def _believes(self, address: Address) -> bool:
        return any(address in network for network in self.networks)

    def client_of(self, forwarded_for: str, address: str) -> str:
        """The client by X-Forwarded-For: from the right, the first that is no proxy of ours; `address` without one.

        What stands left of it, anybody can have written.
        """
        client = address
        for hop in reversed(forwarded_for.rsplit(",", HOPS_MAX)[-HOPS_MAX:]):
            parsed = parse_address(hop.strip(" \t"))
            if parsed is None:
                return client
            client = str(parsed)
            if not self._believes(parsed):
                return client
        return client

    async def preface(self, connection: socket.socket) -> str | None:
        """Reads the PROXY header, no byte more; the client's address, None where the balancer speaks for itself.

        Raises ProxyHeaderError for anything else.
        """
        loop = asyncio.get_running_loop()
        head = await _exactly(loop, connection, len(V2_SIGNATURE))
        if head == V2_SIGNATURE:
            return await _version_2(loop, connection)
        if head.startswith(b"PROXY "):
            return await _version_1(loop, connection, head)
        raise ProxyHeaderError("it is a trusted proxy and did not begin with the PROXY protocol")


def client_network(address: str) -> str:
    """Whose limits an address counts against: its own in IPv4, its /64 in IPv6, of which one customer has a whole."""
    if ":" not in address:
        return address
    try:
        packed = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    mapped = packed.ipv4_mapped
    return str(ipaddress.IPv6Network((packed, 64), strict=False)) if mapped is None else str(mapped)


async def _version_1(loop: asyncio.AbstractEventLoop, connection: socket.socket, line: bytes) -> str | None:
    while not line.endswith(b"\r\n"):
        if len(line) >= V1_BYTES_MAX:
            raise ProxyHeaderError("its PROXY line is too long")
        line += await _exactly(loop, connection, 1)
    fields = line[:-2].decode("latin-1").split(" ")
    if fields[1] == "UNKNOWN":
        return None
    if len(fields) != 6 or fields[1] not in ("TCP4", "TCP6"):
        raise ProxyHeaderError("its PROXY line is malformed")
    parsed = parse_address(fields[2])
    if parsed is None:
        raise ProxyHeaderError("its PROXY line is malformed")
    return str(parsed)


async def _version_2(loop: asyncio.AbstractEventLoop, connection: socket.socket) -> str | None:
    version_command, family, length = struct.unpack("!BBH", await _exactly(loop, connection, 4))
    if version_command >> 4 != 2 or length > V2_BYTES_MAX:
        raise ProxyHeaderError("its PROXY header is malformed")
    rest = await _exactly(loop, connection, length)
    command = version_command & 0x0F
    if command == 0:  # LOCAL: the balancer's own connection, such as a check
        return None
    address_bytes = {1: 4, 2: 16}.get(family >> 4, 0)
    if command != 1 or (address_bytes and len(rest) < 2 * address_bytes + 4):
        raise ProxyHeaderError("its PROXY header is malformed")
    return str(parse_address(str(ipaddress.ip_address(rest[:address_bytes])))) if address_bytes else None


async def _exactly(loop: asyncio.AbstractEventLoop, connection: socket.socket, count: int) -> bytes:
    held = b""
    while len(held) < count:
        try:
            piece = await loop.sock_recv(connection, count - len(held))
        except OSError:
            piece = b""
        if not piece:
            raise ProxyHeaderError("it went away before it had said who its client is")
        held += piece
    return held
