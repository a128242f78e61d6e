"""The composition root of one node. A node starts within a few tenths of a second, most of which is imports."""

from __future__ import annotations

import ssl


def _import_aiohttp() -> None:
    """Without the system's certificate authorities: aiohttp reads them when it is imported, for its client, and that is
    an eighth of a start. The one call that a node makes as a client, to join a cluster, loads them itself.
    """
    ssl.SSLContext.set_default_verify_paths = lambda *_: None  # type: ignore[method-assign]
    try:
        import aiohttp  # noqa: F401
    finally:
        del ssl.SSLContext.set_default_verify_paths  # the one of the class below it counts again


_import_aiohttp()
