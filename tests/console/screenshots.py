"""`make screenshots`: the console as people see it, from real nodes under a made-up load.

    python -m tests.console.screenshots [--seconds 240] [--into screenshots]

Light, dark and narrow; healthy, one node away, no leader, and what a restricted token sees. Nothing is drawn that did
not happen: the figures are those of the load of these seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import math
import random
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from tests.cluster import Cluster
from tests.console.browser import Visit, open_browser

FIRST = "the-first-token-of-this-cluster"
KEYS = {
    "app/users/": 9,
    "app/sessions/": 7,
    "shop/carts/": 4,
    "shop/orders/": 5,
    "config/": 1,
    "jobs/queue/": 6,
    "locks/": 2,
}


def load(cluster: Cluster, stop: threading.Event, seed: int) -> None:
    """Requests of one client, in waves; reads more often than writes, and each kind of keys in its own rhythm."""
    chance = random.Random(seed)
    began = time.monotonic()
    while not stop.is_set():
        passed_s = time.monotonic() - began
        weights = [
            weight * (1.2 + math.sin(passed_s / (25 + 9 * number) + number)) ** 2
            for number, weight in enumerate(KEYS.values())
        ]
        key = chance.choices(list(KEYS), weights)[0] + str(chance.randrange(1, 60))
        node = chance.choice(list(cluster.nodes))
        with contextlib.suppress(OSError, http.client.HTTPException, Exception):
            if chance.random() < 0.3:
                body = json.dumps({"id": chance.randrange(9_000), "state": chance.choice(["new", "paid", "sent"])})
                cluster.request(node, "PUT", f"/v1/kv/{key}", body.encode(), {"Content-Type": "application/json"})
            else:
                cluster.request(node, "GET", f"/v1/kv/{key}")
        stop.wait(0.06 + 0.04 * math.sin(passed_s / 40))


def sign_in(browser: Any, url: str, token: str, scheme: str, size: tuple[int, int]) -> Visit:
    visit = Visit(browser, url, color_scheme=scheme, device_scale_factor=1)
    visit.page.set_viewport_size({"width": size[0], "height": size[1]})
    visit.page.get_by_label("Token", exact=True).fill(token)
    visit.button("Sign in").click()
    return visit


def signed_in(browser: Any, url: str, token: str, scheme: str, size: tuple[int, int]) -> Visit:
    visit = sign_in(browser, url, token, scheme, size)
    visit.page.get_by_role("table", name="Members").wait_for()
    return visit


def shot(visit: Visit, path: Path, key: str | None = None, down_to: str | None = None) -> None:
    """`down_to`: the section that the picture ends with."""
    if key is not None:
        visit.keys.get_by_role("button", name=key, exact=True).click()
    visit.page.wait_for_timeout(6_500)  # every section has been asked for once
    clip = None
    if down_to is not None:
        box = visit.page.get_by_role("region", name=down_to).bounding_box()
        clip = {"x": 0, "y": 0, "width": 1360, "height": box["y"] + box["height"] + 10}
    visit.page.screenshot(path=str(path), full_page=True, clip=clip)
    with contextlib.suppress(ImportError):  # a third of the size where Pillow is there, which `make bench` brings
        from PIL import Image

        Image.open(path).convert("RGB").quantize(224).save(path, optimize=True)
    print(path, path.stat().st_size // 1024, "KiB", flush=True)
    visit.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=240.0, help="of load before the first picture")
    parser.add_argument("--into", type=Path, default=Path("screenshots"))
    options = parser.parse_args()
    options.into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, open_browser() as browser:
        token = Path(folder) / "token"
        token.write_text(FIRST)
        token.chmod(0o600)
        with Cluster(Path(folder) / "nodes", args=("--token-file", str(token)), token=FIRST) as cluster:
            cluster.start(30.0)
            stop = threading.Event()
            clients = [threading.Thread(target=load, args=(cluster, stop, seed), daemon=True) for seed in range(4)]
            for client in clients:
                client.start()
            try:
                pictures(cluster, browser, options.into, options.seconds)
            finally:
                stop.set()
                for client in clients:
                    client.join(15)
    return 0


def pictures(cluster: Cluster, browser: Any, into: Path, seconds: float) -> None:
    bodies = [
        {"name": "shop", "role": "write", "prefixes": ["shop/"], "expires_s": 90 * 86_400},
        {"name": "grafana", "role": "read"},
        {"name": "ci", "role": "write", "prefixes": ["config/", "jobs/"]},
    ]
    secrets = [
        cluster.request("n1", "POST", "/admin/api/v1/tokens", json.dumps(body).encode()).json()["token"]
        for body in bodies
    ]
    for name in ("n2", "n3", cluster.followers()[0]):
        time.sleep(seconds / 4)
        with contextlib.suppress(Exception):
            cluster.transfer(name)
    time.sleep(seconds / 4)
    wide, narrow = (1360, 900), (390, 844)
    url = cluster.url("n1")
    shot(sign_in(browser, url, "a-wrong-token", "light", (1360, 700)), into / "sign-in.png")
    shot(signed_in(browser, url, FIRST, "light", wide), into / "healthy-light.png", "app/sessions/12")
    shot(signed_in(browser, url, FIRST, "light", wide), into / "console.png", "app/sessions/12", "Heat")
    shot(signed_in(browser, url, FIRST, "dark", wide), into / "healthy-dark.png", "app/sessions/12")
    shot(signed_in(browser, url, FIRST, "light", narrow), into / "healthy-narrow.png")
    shot(signed_in(browser, url, secrets[0], "light", wide), into / "restricted-light.png", "shop/carts/12")
    away = next(name for name in ("n2", "n3") if name != cluster.leader())
    watching = signed_in(browser, url, FIRST, "light", wide)
    cluster.kill(away)
    shot(watching, into / "one-away-light.png")
    watching = signed_in(browser, url, FIRST, "dark", wide)
    for name in {"n2", "n3"} - {away}:
        cluster.kill(name)
    watching.page.get_by_text("No leader", exact=True).wait_for()
    shot(watching, into / "no-leader-dark.png")


if __name__ == "__main__":
    sys.exit(main())
