"""The page's files: read once, when the package is imported, and sent with an ETag (RFC 9110, 8.8.3).

Every file has a path of its own in the route table. No pattern stands for several, so that the page can take no path
from the API or the probes, and a path that does not exist stays a JSON 404.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Final

from aiohttp import hdrs, web

from kvnode.http.answer import Answer
from kvnode.http.rights import READ
from kvnode.http.route import Endpoint, Handler, Methods

PATH: Final = "/admin/"
FILES: Final = "/admin/console/"
_TYPES: Final = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
# Of the page's own origin alone, and nothing inline: what a stranger wrote into a key cannot run even where the page
# had a fault (CSP level 3; trusted types make each way from text to HTML an error). No other page may frame this one:
# a click on it can drain a node. Referer and Origin are sent to this origin, where `auth` looks at them.
HEADERS: Final = (
    "Content-Security-Policy: default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'\r\n"
    "X-Content-Type-Options: nosniff\r\n"
    "X-Frame-Options: DENY\r\n"
    "Referrer-Policy: same-origin\r\n"
    "Cross-Origin-Opener-Policy: same-origin\r\n"
    "Cross-Origin-Resource-Policy: same-origin\r\n"
    # Kept, and asked about each time: after an update of the node no browser mixes files of two versions.
    "Cache-Control: no-cache\r\n"
)


def _read() -> dict[str, tuple[str, bytes]]:
    """By path: the type and the bytes of each file."""
    found = {}
    for file in sorted((Path(__file__).parent / "page").iterdir()):
        kind = _TYPES.get(file.name.rpartition(".")[2])
        if kind is not None:
            found[PATH if file.name == "index.html" else FILES + file.name] = (kind, file.read_bytes())
    return found


_FILES: Final = _read()
# What needs no token: it says nothing of this cluster, and is where one signs in.
PUBLIC: Final = frozenset(("/admin", *_FILES))


def routes() -> dict[str, Methods]:
    return {
        "/admin": _for_all(_to_page),
        **{path: _methods(kind, content) for path, (kind, content) in _FILES.items()},
    }


def _to_page(request: web.BaseRequest, rest: str, query: str) -> Answer:
    """The address as people type it. Relative, so that it holds behind any proxy."""
    return Answer(308, b"Location: /admin/\r\nCache-Control: no-cache\r\n")


def _methods(kind: str, content: bytes) -> Methods:
    return _for_all(etagged(kind, content, HEADERS))


def etagged(kind: str, content: bytes, lines: str) -> Callable[[web.BaseRequest, str, str], Answer]:
    """A handler that sends a file with these header lines, or 304 to those who have it."""
    etag = f'"{sha256(content).hexdigest()[:32]}"'
    headers = f"{lines}ETag: {etag}\r\n".encode()
    typed = headers + f"Content-Type: {kind}\r\n".encode()

    def get(request: web.BaseRequest, rest: str, query: str) -> Answer:
        known = request.headers.get(hdrs.IF_NONE_MATCH)
        if known is not None and etag in (each.strip().removeprefix("W/") for each in known.split(",")):
            return Answer(304, headers)
        return Answer(200, typed, content)

    return get


def _for_all(get: Handler) -> Methods:
    """Needs no token, and takes one of any role."""
    endpoint = Endpoint(get, right=READ, scoped=True)
    return {"GET": endpoint, "HEAD": endpoint}
