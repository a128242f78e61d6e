"""Fills a cluster with keys as fast as it takes them: batches of many writes, a few connections."""

from __future__ import annotations

import base64
import http.client
import json
import sys
from concurrent.futures import ThreadPoolExecutor

BATCH = 500
CONNECTIONS = 8
DEADLINE_S = 30.0


def load(leader: tuple[str, int], keys: int, value_bytes: int) -> None:
    """Writes `keys` keys `load/<number>`; ends the program where one of them was not written."""
    value = base64.b64encode(b"v" * value_bytes).decode()

    def share(first: int) -> None:
        connection = http.client.HTTPConnection(*leader, timeout=DEADLINE_S)
        for start in range(first, keys, BATCH * CONNECTIONS):
            numbers = range(start, min(start + BATCH, keys))
            puts = [{"put": {"key": f"load/{number:07d}", "value": value}} for number in numbers]
            connection.request("POST", "/v1/batch", json.dumps({"operations": puts}))
            response = connection.getresponse()
            answer = json.loads(response.read())
            if response.status != 200 or any("error" in result for result in answer["results"]):
                sys.exit(f"The keys could not be loaded: {response.status} {str(answer)[:200]}")
        connection.close()

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        list(pool.map(share, range(0, BATCH * CONNECTIONS, BATCH)))
