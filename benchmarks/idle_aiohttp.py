"""aiohttp doing nothing: `python -m benchmarks.idle_aiohttp PORT`. It reads each body and answers a few bytes of JSON.

This is the ceiling of any node that speaks HTTP through aiohttp: its low-level server, without even its router.
"""

from __future__ import annotations

import asyncio
import sys

import uvloop
from aiohttp import web


async def answer(request: web.BaseRequest) -> web.Response:
    await request.read()
    return web.Response(body=b'{"ok":true}\n', content_type="application/json")


async def main() -> None:
    server = web.Server(answer, access_log=None)
    await asyncio.get_running_loop().create_server(server, "127.0.0.1", int(sys.argv[1]))
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main())
