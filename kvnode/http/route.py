"""The route table: raw path -> methods -> handler. No pattern here ever sees a normalised path."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web

from kvnode.errors import KvnodeError, MethodNotAllowed, NotFound
from kvnode.http.answer import Answer

# A handler gets the request, what stood for the pattern's `{name}` (raw, '' without one) and the raw query.
# One that waits for nothing is a plain function.
Handler = Callable[[web.BaseRequest, str, str], Answer | Awaitable[Answer]]
Methods = Mapping[str, Handler]


class RouteTable:
    """Paths as the rooms name them: exact, or with a `{name}`, which takes all that is there, slashes included."""

    def __init__(self, *tables: Mapping[str, Methods]) -> None:
        self.methods: dict[str, Methods] = {}
        for table in tables:
            for path, methods in table.items():
                if path in self.methods:
                    raise ValueError(f"the path {path} is routed twice")
                self.methods[path] = methods
        self._exact = {path: methods for path, methods in self.methods.items() if "{" not in path}
        open_paths = [path for path in self.methods if "{" in path]
        # By the letters that all patterns have before their names: one lookup leaves one or two of them to try.
        self._fixed = min((path.index("{") for path in open_paths), default=0)
        self._open: dict[str, list[tuple[str, str, Methods]]] = {}
        for path in sorted(open_paths, key=lambda path: path.index("}") - len(path)):  # the more particular ones first
            pattern = (path[: path.index("{")], path[path.index("}") + 1 :], self.methods[path])
            self._open.setdefault(path[: self._fixed], []).append(pattern)

    def find(self, method: str, path: str) -> tuple[Handler, str]:
        """The handler and the raw rest of the path. NotFound, or MethodNotAllowed with the truthful `Allow`."""
        rest = ""
        methods = self._exact.get(path)
        if methods is None:
            for prefix, suffix, open_methods in self._open.get(path[: self._fixed], ()):
                if path.startswith(prefix) and path.endswith(suffix):
                    methods, rest = open_methods, path[len(prefix) : len(path) - len(suffix)]
                    break
            else:
                raise _no_such_path(path)
        handler = methods.get(method)
        if handler is None:
            allow = ", ".join(methods)
            raise MethodNotAllowed(f"This path does not take {method}; it takes {allow}.", allow)
        return handler, rest


def _no_such_path(path: str) -> KvnodeError:
    if path.startswith("/admin/api"):
        return NotFound("There is no such endpoint in the admin API.", "unknown_endpoint")
    return NotFound("There is no such path on this node; keys are under /v1/kv/.")
