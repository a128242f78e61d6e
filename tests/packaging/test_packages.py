"""What people install: the wheel in an empty environment, the sdist that runs its own tests, and the types of both."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import textwrap
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import kvnode
from tests.cli.test_dev import free_range
from tests.cluster import PROJECT, wait_until

pytestmark = pytest.mark.timeout(300)


def ran(*args: str | Path, cwd: Path, env: dict[str, str] | None = None) -> str:
    """The output of a program that ends well; AssertionError with what it said where it does not."""
    inherited = {name: text for name, text in os.environ.items() if not name.startswith(("KVNODE_", "PYTHON"))}
    done = subprocess.run(
        [str(arg) for arg in args],
        cwd=cwd,
        env=inherited | (env or {}),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, f"{args}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that was made from that sdist and nothing else."""
    target = tmp_path_factory.mktemp("dist")
    ran(sys.executable, "-m", "build", "--no-isolation", "--outdir", target, PROJECT, cwd=target)
    return target


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    return next(built.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bin/ of an empty environment after `pip install kvnode-*.whl`."""
    home = tmp_path_factory.mktemp("empty")
    ran(sys.executable, "-m", "venv", home / "venv", cwd=home)
    ran(home / "venv" / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check", wheel, cwd=home)
    return home / "venv" / "bin"


def test_the_wheel_holds_the_package_and_its_licence_and_no_tests(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    package = {str(path.relative_to(PROJECT)) for path in (PROJECT / "kvnode").rglob("*.py")}
    assert package <= set(names)
    assert {"kvnode/py.typed"} <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert {name.partition("/")[0] for name in names} == {"kvnode", f"kvnode-{kvnode.__version__}.dist-info"}
    data = {str(path.relative_to(PROJECT)) for path in (PROJECT / "kvnode").rglob("*") if path.is_file()}
    missing = {name for name in data if "__pycache__" not in name} - set(names)
    assert not missing, "what a node reads beside its code is in the wheel as well"


def test_the_sdist_runs_its_own_tests(built: Path, tmp_path: Path) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        archive.extractall(tmp_path, filter="data")
    (root,) = tmp_path.iterdir()
    tracked = ran("git", "ls-files", "tests", "benchmarks", "docs", "haproxy", "deploy", cwd=PROJECT).splitlines()
    assert [name for name in tracked if not (root / name).exists()] == []
    tests = (
        "tests/test_architecture.py",
        "tests/state/test_store.py",
        "tests/deploy/test_manifests.py",
        "tests/http/test_kv.py",
    )
    out = ran(sys.executable, "-m", "pytest", "-q", "-x", *tests, cwd=root)
    assert " passed" in out
    where = ran(sys.executable, "-c", "import kvnode; print(kvnode.__file__)", cwd=root, env={"PYTHONPATH": str(root)})
    assert where.startswith(str(root)), "these tests ran on what the archive holds"


@pytest.fixture
def cluster(installed: Path, tmp_path: Path) -> Iterator[str]:
    """The URL of three nodes that `kvnode dev` of the wheel runs."""
    http, raft = free_range(3), free_range(3)
    command = [installed / "kvnode", "dev", "--data-dir", tmp_path / "data", "--lb", "off"]
    command += ["--http-port", str(http), "--raft-port", str(raft)]
    dev = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        yield f"http://127.0.0.1:{http}"
    finally:
        dev.send_signal(signal.SIGINT)
        out, _ = dev.communicate(timeout=30)
        assert dev.returncode in (0, 130), out.decode()


def test_the_wheel_alone_runs_a_cluster(installed: Path, cluster: str, tmp_path: Path) -> None:
    kv = installed / "kvnode"

    def put() -> bool:
        done = subprocess.run([kv, "--url", cluster, "put", "a", "1"], capture_output=True, check=False, cwd=tmp_path)
        return done.returncode == 0

    wait_until(put, 30, "the first put is taken")
    assert ran(kv, "--url", cluster, "get", "a", cwd=tmp_path) == "1"
    assert f"kvnode {kvnode.__version__}" in ran(kv, "--version", cwd=tmp_path)
    listed = json.loads(ran(kv, "--url", cluster, "-o", "json", "member", "list", cwd=tmp_path))
    assert len(listed["members"]) == 3


PROGRAM = """
    import asyncio

    from kvnode import errors
    from kvnode.client import Client, Item, Put, SyncClient


    async def program(url: str) -> Item:
        async with Client(url, timeout_s=5.0) as client:
            done: Put = await client.put("jobs/1", b"run", ttl=60)
            try:
                await client.put("jobs/1", b"stop", if_match=done.revision + 1)
            except errors.PreconditionFailed as refused:
                number: int | None = refused.current_revision
                assert number == done.revision
            async for item in client.iterate("jobs/"):
                print(item.key.upper(), len(item.value))
            return await client.get("jobs/1")


    def main(url: str) -> bytes:
        with SyncClient(url) as client:
            client.put("a", b"b")
        return asyncio.run(program(url)).value
"""

WRONG = """
    from kvnode.client import SyncClient

    with SyncClient("http://127.0.0.1:8001") as client:
        client.put("key", value=5)
        client.get("key").value.encode()
"""


def test_a_users_program_is_checked_by_mypy_strictly(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(textwrap.dedent(PROGRAM))
    (tmp_path / "wrong.py").write_text(textwrap.dedent(WRONG))
    mypy = [sys.executable, "-m", "mypy", "--strict", "--python-executable", installed / "python"]
    assert "Success" in ran(*mypy, "program.py", cwd=tmp_path)
    found = subprocess.run([*mypy, "wrong.py"], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert found.returncode == 1, "types that are Any would let this pass"
    assert found.stdout.count("error:") == 2, found.stdout


def test_the_client_needs_aiohttp_alone_and_no_part_of_a_server(tmp_path: Path) -> None:
    program = """
        import sys

        class Missing:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in {libraries}:
                    raise ModuleNotFoundError(name)

        sys.meta_path.insert(0, Missing())
        import kvnode.client
        print(" ".join(name for name in sys.modules if name.startswith("kvnode.")))
    """
    libraries = {"pysyncobj", "msgpack", "uvloop", "click", "rich", "sortedcontainers", "prometheus_client"}
    program = textwrap.dedent(program).replace("{libraries}", repr(libraries))
    modules = ran(sys.executable, "-c", program, cwd=tmp_path, env={"PYTHONPATH": str(PROJECT)}).split()
    rooms = {name.split(".")[1] for name in modules}
    assert rooms == {"client", "errors", "net"}
    assert {name for name in modules if name.startswith("kvnode.net.")} == {"kvnode.net.tls"}
