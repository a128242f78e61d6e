"""A node stands on an aiohttp that was tested, and says so where it does not."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import aiohttp
import pytest

from kvnode.errors import StartupError
from kvnode.http import release
from tests.cli.command import environment
from tests.cluster import PROJECT

PROJECT_FILE = tomllib.loads((PROJECT / "pyproject.toml").read_text())


def test_the_project_allows_what_is_tested_and_nothing_else() -> None:
    (wanted,) = [each for each in PROJECT_FILE["project"]["dependencies"] if each.startswith("aiohttp")]
    assert wanted == f"aiohttp>={release.RELEASES[0]},<={release.RELEASES[-1]}"
    assert aiohttp.__version__ in release.RELEASES
    release.check_release()


def test_another_release_or_another_server_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(aiohttp, "__version__", "3.13.5")
        with pytest.raises(StartupError, match="pip install --force-reinstall aiohttp=="):
            release.check_release()
    for name in release._FILES:
        shutil.copy(Path(aiohttp.__file__).with_name(name), tmp_path)
    assert release._digest(tmp_path) == release._SHA256
    with (tmp_path / "web_protocol.py").open("a") as file:
        file.write("\n")
    assert release._digest(tmp_path) != release._SHA256


def test_a_node_on_another_release_does_not_start(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import aiohttp\naiohttp.__version__ = '3.14.3'\n")
    env = environment() | {"PYTHONPATH": os.pathsep.join((str(tmp_path), str(PROJECT)))}
    command = [sys.executable, "-m", "kvnode", "serve", "--data-dir", str(tmp_path / "data")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("kvnode: The installed aiohttp (3.14.3) is not a release")
    assert not (tmp_path / "data").exists(), "nothing was begun"


def test_the_image_installs_exactly_what_is_locked() -> None:
    lock = (PROJECT / "requirements.lock").read_text()
    locked = dict(re.findall(r"^([a-z0-9-]+)==(\S+)", lock, re.MULTILINE))
    for wanted in PROJECT_FILE["project"]["dependencies"]:
        name = re.split(r"[<>=\[]", wanted)[0]
        assert name in locked, f"{name} is not locked: make lock"
    assert locked["aiohttp"] == release.RELEASES[-1]
    pins = [line for line in lock.splitlines() if line and not line.startswith((" ", "#"))]
    assert lock.count("--hash=sha256:") > len(pins) == len(locked)
    dockerfile = (PROJECT / "Dockerfile").read_text()
    assert "--require-hashes" in dockerfile
    assert "requirements.lock" in dockerfile
