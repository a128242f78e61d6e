"""The console: one page for people at /admin/, out of the package, served by every node.

`page/` holds what the browser gets, as it is: HTML, CSS, SVG and ES modules, no build step. The page has no right of
its own and no private API: it uses the public API, with the session of the person who signed in.
"""

from kvnode.http.console.assets import PUBLIC, routes

__all__ = ["PUBLIC", "routes"]
