"""`GET /docs`: /openapi.json for people, in Swagger UI out of the package that the extra `docs` installs.

mkdocs-swagger-ui-tag is taken for its files alone and never imported: of the packages that carry Swagger UI 5, the
first to know OpenAPI 3.1, it is the one that is kept up and draws in no web framework.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from aiohttp import web

from kvnode.http.answer import Answer
from kvnode.http.console.assets import HEADERS, etagged
from kvnode.http.rights import READ
from kvnode.http.route import Endpoint, Methods

PACKAGE: Final = "mkdocs_swagger_ui_tag"
PATH: Final = "/docs"
# The links are relative, so that they hold behind any proxy.
_PAGE: Final = b"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>kvnode API</title>
<link rel="icon" href="admin/console/icon.svg">
<link rel="stylesheet" href="docs/swagger-ui.css">
<main id="viewer"></main>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</html>
"""
_START: Final = b"""SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#viewer",
  docExpansion: "list",
  defaultModelsExpandDepth: 0,
  validatorUrl: null, // which would be another origin
});
"""
# As the console's, but for two things that Swagger UI does: it takes images out of its own stylesheet, and makes HTML
# of text (which it cleans with DOMPurify) without trusted types. What it shows is this node's own document.
_POLICY: Final = HEADERS.replace("default-src 'self'", "default-src 'self'; img-src 'self' data:").replace(
    "; require-trusted-types-for 'script'", ""
)
_MISSING: Final = b"This node shows its API document once it is installed with its viewer: pip install 'kvnode[docs]'\n"


def routes() -> dict[str, Methods]:
    """For whom /openapi.json is."""
    return {
        PATH: _methods("text/html; charset=utf-8", lambda: _PAGE),
        f"{PATH}/start.js": _methods("text/javascript; charset=utf-8", lambda: _START),
        f"{PATH}/swagger-ui.css": _methods("text/css; charset=utf-8", _reader("stylesheets/swagger-ui.css")),
        f"{PATH}/swagger-ui-bundle.js": _methods(
            "text/javascript; charset=utf-8", _reader("javascripts/swagger-ui-bundle.js")
        ),
    }


def _folder() -> Path | None:
    """Where the package's files are; None without the package."""
    found = find_spec(PACKAGE)
    places = found.submodule_search_locations if found is not None else None
    return Path(places[0]) / "swagger-ui" if places else None


def _reader(name: str) -> Callable[[], bytes]:
    def read() -> bytes:
        folder = _folder()
        return b"" if folder is None else (folder / name).read_bytes()

    return read


def _methods(kind: str, read: Callable[[], bytes]) -> Methods:
    """Reads when it is first asked for: most nodes never show the page, and it is 1.7 MB."""
    made: list[Callable[[web.BaseRequest, str, str], Answer]] = []

    def get(request: web.BaseRequest, rest: str, query: str) -> Answer:
        if _folder() is None:
            return Answer(404, b"Content-Type: text/plain; charset=utf-8\r\nCache-Control: no-store\r\n", _MISSING)
        if not made:
            made.append(etagged(kind, read(), _POLICY))
        return made[0](request, rest, query)

    endpoint = Endpoint(get, right=READ, scoped=True)
    return {"GET": endpoint, "HEAD": endpoint}
