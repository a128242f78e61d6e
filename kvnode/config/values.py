"""How text becomes a value: durations, addresses, names, peer lists. Pure; `Malformed` says what to write instead."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

HostPort = tuple[str, int]

SHOWN_CHARS_MAX: Final = 64

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_HOST: Final = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._-]{0,251}[A-Za-z0-9_])?\.?")
_DURATION: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m)")
_UNIT_S: Final = {"ms": 0.001, "s": 1.0, "m": 60.0}
_ON: Final = ("on", "true", "yes", "1")
_OFF: Final = ("off", "false", "no", "0")


class Malformed(ValueError):
    """The text is not such a value; the message is half a sentence without its full stop."""


def _quoted(text: str) -> str:
    """As a message repeats it: some texts come from requests, and may be as long as a body."""
    return repr(text if len(text) <= SHOWN_CHARS_MAX else text[:SHOWN_CHARS_MAX] + "…")


def name(text: str) -> str:
    """A node's or cluster's name. It is also a directory's, hence no leading dot or dash."""
    if not _NAME.fullmatch(text):
        raise Malformed(
            f"{_quoted(text)} is no name; use 1 to 63 letters, digits, '.', '_' or '-', a letter or digit first"
        )
    return text


def directory(text: str) -> Path:
    """The path of a directory. An empty text, as of a variable that is not set, does not mean the current one."""
    if not text:
        raise Malformed("an empty text names no directory; write ./ for the current one")
    return Path(text)


def choice(text: str, allowed: tuple[str, ...]) -> str:
    if text not in allowed:
        raise Malformed(f"write one of {', '.join(allowed)}")
    return text


def switch(text: str) -> bool:
    if text.lower() in _ON:
        return True
    if text.lower() in _OFF:
        return False
    raise Malformed("write on or off")


def duration(text: str, least_s: float, most_s: float) -> float:
    """Seconds, from a number with its unit: 500ms, 1.5s, 2m. A bare number is refused: its unit would be a guess."""
    match = _DURATION.fullmatch(text.strip())
    if not match:
        raise Malformed("write a number and its unit, such as 500ms or 1.5s")
    seconds = float(match[1]) * _UNIT_S[match[2]]
    if not least_s <= seconds <= most_s:
        raise Malformed(f"write a time from {show_duration(least_s)} to {show_duration(most_s)}")
    return round(seconds, 6)


def duration_range(text: str, least_s: float, most_s: float) -> tuple[float, float]:
    """Two durations, the shorter first: 600-1200ms or 600ms-1.2s."""
    low, dash, high = text.partition("-")
    unit = _DURATION.fullmatch(high.strip())
    if not dash or not unit:
        raise Malformed("write the shortest and the longest, such as 600-1200ms")
    low = low.strip() if _DURATION.fullmatch(low.strip()) else low.strip() + unit[2]
    shortest_s, longest_s = duration(low, least_s, most_s), duration(high, least_s, most_s)
    if shortest_s >= longest_s:
        raise Malformed("the shortest must be below the longest, or candidates collide; write such as 600-1200ms")
    return shortest_s, longest_s


def show_duration(seconds: float) -> str:
    return f"{seconds * 1000:g}ms" if seconds < 1 else f"{seconds:g}s"


def host_port(text: str) -> HostPort:
    """(host, port) from HOST:PORT; an IPv6 address stands in brackets, and comes back without."""
    if "://" in text:
        raise Malformed("this is a URL; write HOST:PORT, such as 127.0.0.1:8001")
    host, colon, port_text = text.strip().rpartition(":")
    if not colon or not host:
        raise Malformed("write HOST:PORT, such as 127.0.0.1:8001")
    if not (port_text.isascii() and port_text.isdigit() and len(port_text) <= 5 and 1 <= int(port_text) <= 65_535):
        raise Malformed(f"{_quoted(port_text)} is no port; write HOST:PORT with a port from 1 to 65535")
    return _host(host), int(port_text)


def _host(text: str) -> str:
    if text.startswith("[") and text.endswith("]"):
        try:
            return str(ipaddress.IPv6Address(text[1:-1]))
        except ValueError:
            raise Malformed(f"{_quoted(text)} is no IPv6 address; write such as [::1]:8001") from None
    if ":" in text:
        raise Malformed("an IPv6 address needs brackets; write such as [::1]:8001")
    if not _HOST.fullmatch(text):
        raise Malformed(f"{_quoted(text)} is no host; write a name or an IP address, such as 127.0.0.1:8001")
    return text


def show_host_port(address: HostPort) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the host. A name other than localhost may resolve to anything: no."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_any_address(host: str) -> bool:
    """Whether the host means every interface: good to listen on, useless to dial."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def peers(text: str) -> dict[str, HostPort]:
    """Members by name, from n1=HOST:PORT,n2=HOST:PORT."""
    found: dict[str, HostPort] = {}
    for entry in text.split(","):
        peer, equals, address_text = (part.strip() for part in entry.partition("="))
        if not equals:
            raise Malformed(f"{entry.strip()!r} has no '='; write n1=HOST:PORT,n2=HOST:PORT,n3=HOST:PORT")
        name(peer)
        try:
            address = host_port(address_text)
        except Malformed as problem:
            raise Malformed(f"in {entry.strip()!r}, {problem}") from None
        if is_any_address(address[0]):
            raise Malformed(
                f"in {entry.strip()!r}, nobody can dial {address[0]}; write the address that peers can reach"
            )
        if peer in found:
            raise Malformed(f"{peer} is named twice; give each member one entry")
        if address in found.values():
            raise Malformed(f"{address_text} is used twice; give each member its own address")
        found[peer] = address
    return found


def base_url(text: str) -> str:
    """scheme://host[:port], without a trailing slash; a path, query or credentials are refused."""
    url = text.strip().rstrip("/")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port, parts = None, None, urlsplit("")
    if parts.scheme not in ("http", "https") or not host or port == 0:
        raise Malformed("write a URL, such as http://n1.example.net:8001")
    if parts.path or parts.query or parts.fragment or "@" in parts.netloc:
        raise Malformed("write only scheme, host and port, such as http://n1.example.net:8001")
    try:
        _host(f"[{host}]" if ":" in host else host)
    except Malformed:
        raise Malformed(
            "its host is neither a name nor an IP address; write such as http://n1.example.net:8001"
        ) from None
    if is_any_address(host):
        raise Malformed(f"nobody can reach {host}; give --advertise-http http://NAME:PORT with a name others can reach")
    return url


def base_urls(text: str) -> tuple[str, ...]:
    """One URL or several, parted by commas."""
    return tuple(base_url(url) for url in text.split(","))
