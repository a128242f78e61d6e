"""`make test-aiohttp`: the HTTP tests with the lowest and the highest aiohttp that pyproject.toml allows.

Each in a virtual environment that is thrown away: a new one with that aiohttp, and everything else from this one.
Exit code 0: all tests passed with both. Needs the network, as `make setup` does.
"""

from __future__ import annotations

import site
import subprocess
import sys
import tempfile
from pathlib import Path

from kvnode.http.release import RELEASES

PROJECT = Path(__file__).resolve().parent.parent
TESTS = ("tests/http", "tests/watch", "tests/processes/test_connections_at_the_end.py")
INSTALL_S, TESTS_S = 300.0, 900.0


def environment(folder: Path, packages_wanted: list[str]) -> str:
    """Makes one with these packages before all others; its interpreter. Raises CalledProcessError."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=INSTALL_S)
    (packages,) = folder.glob("lib/python*/site-packages")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, "--target", str(packages), *packages_wanted], check=True, timeout=INSTALL_S)
    # Looked through behind its own packages.
    (packages / "everything-else.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    return str(folder / "bin" / "python")


def main() -> int:
    for release in dict.fromkeys((RELEASES[0], RELEASES[-1])):
        with tempfile.TemporaryDirectory(prefix="kvnode-aiohttp-") as folder:
            python = environment(Path(folder), [f"aiohttp=={release}"])
            print(f"aiohttp {release}: {' '.join(TESTS)}", flush=True)
            found = [python, "-c", "import aiohttp; print(aiohttp.__version__)"]
            said = subprocess.run(found, check=True, capture_output=True, text=True, timeout=60).stdout.strip()
            if said != release:
                print(f"aiohttp {said} was imported instead of {release}", file=sys.stderr)
                return 1
            tests = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *sys.argv[1:], *TESTS]
            done = subprocess.run(tests, cwd=PROJECT, check=False, timeout=TESTS_S)
            if done.returncode != 0:
                print(f"failed with aiohttp {release}", file=sys.stderr)
                return 1
    print("all tests passed with each of them", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
