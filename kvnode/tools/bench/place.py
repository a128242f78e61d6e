"""A URL to put load on, and what every request that goes there says."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

from kvnode.client import Access

AGENT: Final = "kvnode-bench"


@dataclass(frozen=True)
class Place:
    """`path` goes before every path, and the token with every request."""

    host: str
    port: int
    path: str
    authority: str
    token: str = field(repr=False)
    tls: ssl.SSLContext | None = None

    def head(self, method: str, path: str) -> bytes:
        """The request's first lines; a line break is to follow, or more of them."""
        lines = f"{method} {self.path}{path} HTTP/1.1\r\nHost: {self.authority}\r\nUser-Agent: {AGENT}\r\n"
        if self.token:
            lines += f"Authorization: Bearer {self.token}\r\n"
        return lines.encode()


def place(url: str, access: Access) -> Place:
    """Of a URL that a `Client` has taken. Raises BadRequest for a certificate that cannot be used."""
    parts = urlsplit(url.rstrip("/"))
    is_tls = parts.scheme == "https"
    return Place(
        host=parts.hostname or "",
        port=parts.port or (443 if is_tls else 80),
        path=parts.path,
        authority=parts.netloc.rpartition("@")[2],
        token=access.token,
        tls=access.context() if is_tls else None,
    )
