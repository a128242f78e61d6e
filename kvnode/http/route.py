"""The route table: raw path -> methods -> endpoint. No pattern here ever sees a normalised path."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from aiohttp import web

from kvnode.errors import BadRequest, Forbidden, KvnodeError, MethodNotAllowed, NotFound
from kvnode.http.answer import Answer
from kvnode.http.paths import decode
from kvnode.http.rights import ADMIN, ALL, Rights

# A handler gets the request, what stood for the pattern's `{name}` (raw, '' without one) and the raw query.
# One that waits for nothing is a plain function.
Handler = Callable[[web.BaseRequest, str, str], Answer | Awaitable[Answer]]


class Endpoint:
    """A handler with the query parameters that it takes, and whom it serves.

    `right`: the role that it takes (`rights.READ`, WRITE or ADMIN), where the node asks for tokens. `scoped`: whether
    it takes tokens with prefixes, which is so where the handler asks `rights.Rights` for each key that the request
    names, or where nothing in request and answer names keys.

    `checks`: whether `check` must pass before the handler runs. It is False for probes, whose callers add parameters of
    their own, and where the handler calls `check` itself.
    """

    __slots__ = ("checks", "handler", "parameters", "right", "scoped")

    def __init__(
        self, handler: Handler, *parameters: str, right: int = ADMIN, scoped: bool = False, checks: bool = True
    ) -> None:
        self.handler = handler
        self.right = right
        self.scoped = scoped
        self.parameters: frozenset[str] = frozenset(parameters)
        self.checks = checks

    def check(self, query: str) -> None:
        """Raises BadRequest for a parameter that the handler does not take, or that is given twice.

        A parameter that is ignored means another request than the one that is carried out: `?cas=0` would overwrite.
        """
        given: set[str] = set()
        for piece in query.split("&"):
            if not piece:
                continue
            name = piece.partition("=")[0]
            if name not in self.parameters:
                name = decode(name.replace("+", " "), "query")
                if name not in self.parameters:
                    raise BadRequest(_unknown(name, self.parameters))
            if name in given:
                raise BadRequest(f"The query parameter '{name}' is given more than once; send it once.")
            given.add(name)


# A bare handler takes no query parameters and an administrator's token.
Methods = Mapping[str, Handler | Endpoint]

SHOWN_CHARS_MAX: Final = 64  # of a name that a client made up; the answer repeats no more of it


def as_endpoint(taking: Handler | Endpoint) -> Endpoint:
    """The endpoint of a route: a bare handler takes no query parameters and an administrator's token."""
    return taking if isinstance(taking, Endpoint) else Endpoint(taking)


def _unknown(name: str, known: frozenset[str]) -> str:
    shown = name if len(name) <= SHOWN_CHARS_MAX else f"{name[:SHOWN_CHARS_MAX]}…"
    takes = f"the known ones are: {', '.join(sorted(known))}" if known else "this request takes none"
    return f"There is no query parameter '{shown}' here; {takes}."


class RouteTable:
    """Paths as the rooms name them: exact, or with a `{name}`, which takes all that is there, slashes included."""

    def __init__(self, *tables: Mapping[str, Methods]) -> None:
        self.methods: dict[str, dict[str, Endpoint]] = {}
        for table in tables:
            for path, methods in table.items():
                if path in self.methods:
                    raise ValueError(f"the path {path} is routed twice")
                self.methods[path] = {method: as_endpoint(each) for method, each in methods.items()}
        self._exact = {path: methods for path, methods in self.methods.items() if "{" not in path}
        open_paths = [path for path in self.methods if "{" in path]
        # By the letters that all patterns have before their names: one lookup leaves one or two of them to try.
        self._fixed = min((path.index("{") for path in open_paths), default=0)
        self._open: dict[str, list[tuple[str, str, dict[str, Endpoint]]]] = {}
        for path in sorted(open_paths, key=lambda path: path.index("}") - len(path)):  # the more particular ones first
            pattern = (path[: path.index("{")], path[path.index("}") + 1 :], self.methods[path])
            self._open.setdefault(path[: self._fixed], []).append(pattern)

    def find(self, method: str, path: str, rights: Rights = ALL) -> tuple[Endpoint, str]:
        """The endpoint and the raw rest of the path. NotFound, or MethodNotAllowed with the truthful `Allow`.

        Forbidden where there is no such method, and the path's others are not for these rights either.
        """
        rest = ""
        methods = self._exact.get(path)
        if methods is None:
            for prefix, suffix, open_methods in self._open.get(path[: self._fixed], ()):
                if path.startswith(prefix) and path.endswith(suffix):
                    methods, rest = open_methods, path[len(prefix) : len(path) - len(suffix)]
                    break
            else:
                raise _no_such_path(path)
        endpoint = methods.get(method)
        if endpoint is None:
            if rights.role < min(each.right for each in methods.values()):
                raise Forbidden("This token has no right to this path.")
            allow = ", ".join(methods)
            raise MethodNotAllowed(f"This path does not take {method}; it takes {allow}.", allow)
        return endpoint, rest


def _no_such_path(path: str) -> KvnodeError:
    if path.startswith("/admin/api"):
        return NotFound("There is no such endpoint in the admin API.", "unknown_endpoint")
    return NotFound("There is no such path on this node; keys are under /v1/kv/.")
