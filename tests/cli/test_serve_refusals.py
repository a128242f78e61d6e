"""A node that cannot start says why in one sentence, exits with 2, and leaves nothing behind."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.command import is_one_sentence, kvnode
from tests.cluster import Cluster, free_ports


class Doorway:
    """The ports and the folder of one node that is about to be refused."""

    def __init__(self, folder: Path) -> None:
        self.http, self.raft = free_ports(2)
        self.data_dir = folder / "n1"

    def serve(self, *args: str, **env: str) -> str:
        """Runs `kvnode serve`, expects a refusal, and returns its sentence. Later arguments beat earlier ones."""
        mine = [
            "--http",
            f"127.0.0.1:{self.http}",
            "--raft",
            f"127.0.0.1:{self.raft}",
            "--data-dir",
            str(self.data_dir),
        ]
        done = kvnode("serve", *mine, *args, env=env)
        assert done.code == 2, done.err
        assert is_one_sentence(done.err), done.err
        assert done.out == b""
        for port in (self.http, self.raft):
            with socket.socket() as s:
                assert s.connect_ex(("127.0.0.1", port)) != 0, "something still listens"
        return done.err


@pytest.fixture
def doorway(tmp_path: Path) -> Doorway:
    return Doorway(tmp_path)


@pytest.fixture
def taken_port() -> Iterator[int]:
    """A port that somebody else listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        yield s.getsockname()[1]


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (["--peers", "n1"], "has no '='"),
        (["--peers", "n1=127.0.0.1:x"], "is no port"),
        (["--peers", "n2=127.0.0.1:7002"], "n1, is not in the list"),
        (["--peers", "n1=127.0.0.1:7001,n2=127.0.0.1:7002"], "1, 3, 5 or 7"),
        (["--advertise-http", "http://0.0.0.0:8001"], "others can reach"),
        (["--config", "/nonexistent/kvnode.toml"], "cannot be read"),
        (["--election-timeout", "100-200ms"], "three heartbeats"),
        (["--tls-cert", "/nonexistent.pem", "--tls-key", "/nonexistent.pem"], "No such file"),
    ],
)
def test_a_wrong_option_is_refused_before_anything_exists(doorway: Doorway, args: list[str], part: str) -> None:
    assert part in doorway.serve(*args)
    assert not doorway.data_dir.exists()


def test_http_on_every_address_needs_a_name_for_others(doorway: Doorway) -> None:
    assert "--advertise-http" in doorway.serve("--http", f"0.0.0.0:{doorway.http}", "--insecure")


def test_http_off_loopback_must_be_asked_for(doorway: Doorway) -> None:
    sentence = doorway.serve("--http", f"0.0.0.0:{doorway.http}")
    assert "--insecure" in sentence
    assert "--token-file" in sentence


def test_raft_off_loopback_needs_a_secret(doorway: Doorway) -> None:
    assert "--cluster-secret-file" in doorway.serve("--raft", f"0.0.0.0:{doorway.raft}")


def test_a_secret_file_must_be_readable_and_hold_a_secret(doorway: Doorway, tmp_path: Path) -> None:
    assert "cannot be read" in doorway.serve("--cluster-secret-file", str(tmp_path / "none"))
    (tmp_path / "empty").write_text("\n")
    assert "16 to 4096 bytes" in doorway.serve("--cluster-secret-file", str(tmp_path / "empty"))


def test_a_wrong_variable_is_named(doorway: Doorway) -> None:
    assert "KVNODE_FSYNC" in doorway.serve(KVNODE_FSYNC="sometimes")


def test_the_http_port_is_in_use(doorway: Doorway, taken_port: int) -> None:
    sentence = doorway.serve("--http", f"127.0.0.1:{taken_port}")
    assert str(taken_port) in sentence
    assert "in use" in sentence
    assert "--http" in sentence


def test_the_raft_port_is_in_use(doorway: Doorway, taken_port: int) -> None:
    sentence = doorway.serve("--raft", f"127.0.0.1:{taken_port}")
    assert str(taken_port) in sentence
    assert "in use" in sentence


def test_an_address_of_another_machine_is_refused(doorway: Doorway) -> None:
    secret = "0123456789abcdef"
    assert "192.0.2.1" in doorway.serve("--http", f"192.0.2.1:{doorway.http}", "--insecure")
    peers = f"n1=192.0.2.1:{doorway.raft}"
    sentence = doorway.serve("--raft", f"192.0.2.1:{doorway.raft}", "--peers", peers, KVNODE_CLUSTER_SECRET=secret)
    assert "192.0.2.1" in sentence


def test_the_data_directory_cannot_be_made(doorway: Doorway, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory")  # root may write anywhere, but not beneath a file
    assert str(tmp_path / "file") in doorway.serve("--data-dir", str(tmp_path / "file" / "n1"))
    assert str(tmp_path / "file") in doorway.serve("--data-dir", str(tmp_path / "file"))


def test_the_data_directory_is_another_nodes_or_clusters(tmp_path: Path, doorway: Doorway) -> None:
    with Cluster(tmp_path / "other", size=1, args=["--cluster-id", "blue"]) as other:
        other.start()
        node = other.nodes["n1"]
        doorway.data_dir = node.data_dir
        assert "in use" in doorway.serve("--cluster-id", "blue")
        other.terminate("n1")
    before = {path.name: path.read_bytes() for path in node.data_dir.iterdir() if path.is_file()}
    assert "belongs to node 'n1'" in doorway.serve("--node-id", "n2")
    assert "another cluster" in doorway.serve("--cluster-id", "green")
    three = ",".join(f"n{i}=127.0.0.1:{port}" for i, port in enumerate([doorway.raft, *free_ports(2)], 1))
    assert "--peers" in doorway.serve("--peers", three)
    assert {path.name: path.read_bytes() for path in node.data_dir.iterdir() if path.is_file()} == before
