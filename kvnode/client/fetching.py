"""A long answer, taken piece by piece: from the first node that gives one, and whole or not at all."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Final

import aiohttp
from yarl import URL

from kvnode import errors
from kvnode.client.access import OPEN, Access, no_connection
from kvnode.client.answers import Answer, refusal

CONNECT_S: Final = 2.0
SILENCE_S: Final = 60.0  # a node sorts its keys before it sends the first: seconds for a million of them
PIECE_BYTES: Final = 262_144


async def fetch(urls: Sequence[str], path: str, access: Access = OPEN) -> AsyncIterator[bytes]:
    """The body of `GET path`, by the first node that begins to answer with 200.

    Raises what the last node refused with, or Unavailable: also where the connection breaks before the end.
    """
    last: errors.KvnodeError = errors.BadRequest("No node to talk to: give at least one URL.")
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=SILENCE_S)
    async with access.session(timeout=timeout) as session:
        for url in urls:
            begun = False
            try:
                async with session.get(URL(url.rstrip("/") + path, encoded=True), allow_redirects=False) as response:
                    if response.status != 200:
                        raise refusal(url, Answer(response.status, response.headers, await response.read()), True)
                    begun = True
                    async for piece in response.content.iter_chunked(PIECE_BYTES):
                        yield piece
                    return
            except errors.Unavailable as e:
                last = e
            except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as e:
                last = no_connection(url, e)
            except (aiohttp.ClientError, TimeoutError, OSError):
                when = "before the end" if begun else "before it answered"
                last = errors.Unavailable(f"{url} broke off {when}: try again, or another node.")
                if begun:
                    raise last from None
            except ValueError:
                raise errors.BadRequest(f"{url!r} is no URL of a node; write such as http://127.0.0.1:8001.") from None
    raise last
