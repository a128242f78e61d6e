"""`make test-lowest`: the tests that need no cluster, with the lowest allowed version of each dependency.

In a virtual environment that is thrown away: a new one with these versions, and everything else from this one.
Exit code 0: all tests passed. Needs the network, as `make setup` does.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

from tests.aiohttp_range import INSTALL_S, PROJECT, TESTS_S, environment

TESTS = ("tests/state", "tests/config", "tests/logs", "tests/metrics", "tests/watch", "tests/net", "tests/http")
GENERATED = "tests/http/test_generated_client.py"  # runs a command of the whole environment, which this one has not


def lowest() -> dict[str, str]:
    """By a dependency's name: the version that its lower bound, or its pin, names."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    found = {}
    for requirement in map(Requirement, project["dependencies"]):
        (found[requirement.name],) = (each.version for each in requirement.specifier if each.operator in (">=", "=="))
    return found


def main() -> int:
    versions = lowest()
    with tempfile.TemporaryDirectory(prefix="kvnode-lowest-") as folder:
        python = environment(Path(folder), [f"{name}=={version}" for name, version in versions.items()])
        listing = "import importlib.metadata as m, sys; print(*(m.version(name) for name in sys.argv[1:]))"
        found = [python, "-c", listing, *versions]
        said = subprocess.run(found, check=True, capture_output=True, text=True, timeout=INSTALL_S).stdout.split()
        wrong = {name for name, version in zip(versions, said, strict=True) if not version.startswith(versions[name])}
        if wrong:
            print(f"not the lowest version was imported of: {', '.join(sorted(wrong))}", file=sys.stderr)
            return 1
        print("with " + ", ".join(map(" ".join, zip(versions, said, strict=True))), flush=True)
        tests = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--ignore", GENERATED, *sys.argv[1:], *TESTS]
        return subprocess.run(tests, cwd=PROJECT, check=False, timeout=TESTS_S).returncode


if __name__ == "__main__":
    sys.exit(main())
