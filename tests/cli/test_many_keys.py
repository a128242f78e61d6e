"""txn, lease, export, import, completion and the options of put, get and list, as a shell runs them on a real node."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvnode.cli.keys import preview
from tests.cli.command import COMMAND, Done, environment, is_one_sentence, kvnode_here
from tests.cluster import Cluster


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with Cluster(tmp_path_factory.mktemp("cli"), size=1).start() as cluster:
        yield cluster.url("n1")


def run(url: str, *args: str, stdin: bytes = b"") -> Done:
    return kvnode_here(*args, stdin=stdin, env={"KVNODE_URL": url})


def test_a_transaction_comes_from_a_file_or_stdin_and_its_exit_code_tells_the_branch(url: str, tmp_path: Path) -> None:
    document = {
        "compare": [{"key": "txn/a", "exists": False}],
        "success": [{"put": {"key": "txn/a", "text": "mine", "ttl": 60}}, {"delete": {"key": "txn/b"}}],
        "failure": [{"get": {"key": "txn/a"}}, {"get": {"key": "txn/b"}}],
    }
    file = tmp_path / "txn.json"
    file.write_text(json.dumps(document))
    done = run(url, "txn", str(file))
    assert done.code == 0, done.err
    assert done.out.decode().splitlines()[1:] == ["put\ttxn/a\t1", "delete\ttxn/b\t0"]
    done = run(url, "txn", stdin=file.read_bytes())
    assert done.code == 4
    assert done.out.decode().splitlines()[1:] == ["get\ttxn/a\tmine", "get\ttxn/b\t-"]
    done = run(url, "txn", "-", "-o", "json", stdin=file.read_bytes())
    answer = json.loads(done.out)
    assert not answer["succeeded"]
    assert answer["results"][0]["get"]["value"] == b64encode(b"mine").decode()


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b'{"compares": []}', b'{"compare": 1}', b'{"compare": [1]}'])
def test_what_is_no_transaction_is_a_usage_error_in_one_sentence(url: str, text: bytes) -> None:
    done = run(url, "txn", stdin=text)
    assert (done.code, done.out) == (2, b"")
    assert is_one_sentence(done.err)


def test_a_lease_is_granted_renewed_shown_and_revoked(url: str) -> None:
    lease = run(url, "lease", "grant", "60").out.decode().strip()
    assert run(url, "put", "lease/a", "1", "--lease", lease).code == 0
    assert run(url, "lease", "keepalive", lease).out.decode().strip() == lease
    shown = json.loads(run(url, "lease", "get", lease, "-o", "json").out)
    assert (shown["ttl"], shown["keys"]) == (60, ["lease/a"])
    listed = {line.split("\t")[0]: line.split("\t")[1:] for line in run(url, "lease", "list").out.decode().splitlines()}
    assert listed[lease][0] == "60"
    assert 50 <= int(listed[lease][1]) <= 60
    assert run(url, "lease", "revoke", lease).out == b"1\n"
    gone = run(url, "lease", "revoke", lease)
    assert gone.code == 3
    assert is_one_sentence(gone.err)
    assert run(url, "get", "lease/a").code == 3


def test_put_with_a_ttl_and_get_at_a_revision(url: str) -> None:
    done = json.loads(run(url, "put", "ttl/a", "-", "--ttl", "90", "-o", "json", stdin=b"\x00\xff").out)
    item = json.loads(run(url, "get", "ttl/a", "-o", "json").out)
    assert (item["lease"], item["ttl"], item["value"]) == (done["lease"], 90, "AP8=")
    assert run(url, "put", "ttl/a", "x", "--ttl", "1", "--lease", "1").code == 2
    run(url, "put", "ttl/a", "later")
    assert run(url, "get", "ttl/a", "--revision", str(done["revision"])).out == b"\x00\xff"
    assert run(url, "get", "ttl/a", "--revision", str(done["revision"] - 1)).code == 3
    refused = run(url, "get", "ttl/a", "--revision", "99999")
    assert refused.code == 2
    assert "still to come" in refused.err


def test_what_is_exported_is_imported_again_to_the_byte(url: str, tmp_path: Path) -> None:
    values = {f"round/{i:04}": bytes([i % 256]) * (i % 7) for i in range(1_100)}
    lines = [{"key": key, "value": b64encode(value).decode()} for key, value in values.items()]
    lines.append({"key": "round/é\n", "text": "Grüße", "content_type": "text/x-greeting", "ttl": 500})
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps(line) + "\n" for line in lines) + "\n")
    assert run(url, "import", str(source)).code == 0
    target = tmp_path / "out.jsonl"
    done = run(url, "export", str(target), "--prefix", "round/")
    assert done.code == 0, done.err
    first = target.read_bytes()
    exported = [json.loads(line) for line in first.splitlines()]
    assert exported[:-1] == lines[:-1]
    last = exported[-1]
    assert last.pop("ttl") in range(480, 501)
    value = b64encode("Grüße".encode()).decode()
    assert last == {"key": "round/é\n", "value": value, "content_type": "text/x-greeting"}
    assert (
        run(url, "import", stdin=first + b'{"key": "round/0000", "text": "the last line counts"}\n' * 2_000).code == 0
    )
    assert run(url, "get", "round/0000").out == b"the last line counts"
    assert run(url, "import", stdin=first.splitlines()[0]).code == 0
    again = run(url, "export", "--prefix", "round/")
    assert [json.loads(line)["value"] for line in again.out.splitlines()] == [each["value"] for each in exported]


@pytest.mark.parametrize(
    "line",
    [
        b"x",
        b'{"key": "a"}',
        b'{"key": "", "text": ""}',
        b'{"key": "bad/2", "value": "?"}',
        b'{"key": "bad/2", "text": "", "ttl": 0}',
        b'{"key": "bad/2", "text": "", "content_type": "\\n"}',
        b'{"key": "bad/2", "text": "", "what": 0}',
    ],
)
def test_a_line_that_cannot_be_set_is_named_and_ends_the_import(url: str, line: bytes) -> None:
    done = run(url, "import", stdin=b'{"key": "bad/1", "text": ""}\n\n' + line + b"\n")
    assert done.code == 2
    assert is_one_sentence(done.err)
    assert "Line 3" in done.err
    assert run(url, "get", "bad/2").code == 3


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_an_export_that_finds_no_space_is_a_sentence(url: str) -> None:
    run(url, "put", "full/a", "x" * 100_000)
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [*COMMAND, "export", "--prefix", "full/", "--url", url],
            stdout=full,
            stderr=subprocess.PIPE,
            env=environment(),
            timeout=30,
            check=False,
        )
    assert (done.returncode, is_one_sentence(done.stderr.decode())) == (1, True), done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_commands_and_options(shell: str) -> None:
    script = kvnode_here("completion", shell)
    assert script.code == 0
    assert b"_KVNODE_COMPLETE" in script.out
    words = {"COMP_WORDS": "kvnode tx", "COMP_CWORD": "1" if shell != "fish" else "tx"}
    # The script calls the program by its name; a real shell would find it in PATH.
    done = subprocess.run(
        [sys.executable, "-c", "from kvnode.cli import main; main()"],
        env=environment({"_KVNODE_COMPLETE": f"{shell}_complete", **words}),
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert b"txn" in done.stdout


def test_the_preview_of_a_value_is_one_cell() -> None:
    assert preview(b"") == ""
    assert preview("é".encode() * 60) == "é" * 60
    assert preview(("x" + "é" * 300).encode()) == "x" + "é" * 59 + "…"
    assert preview(bytes(range(256)) * 9) == "(2304 bytes)"
    assert preview(b"\xc3") == "(1 bytes)"


def test_a_terminal_gets_a_table_and_a_progress_bar(url: str, tmp_path: Path) -> None:
    for i in range(3):
        run(url, "put", f"tty/{i}", "v", "--ttl", "60")
    for command, expected in (
        (["list", "tty/"], b"revision"),
        (["export", str(tmp_path / "o"), "--prefix", "tty/"], b"3 keys exported"),
    ):
        mine, theirs = pty.openpty()
        env = environment({"KVNODE_URL": url, "TERM": "xterm", "COLUMNS": "100"})
        process = subprocess.Popen([*COMMAND, *command], stdin=theirs, stdout=theirs, stderr=theirs, env=env)
        os.close(theirs)
        seen = b""
        try:
            while piece := os.read(mine, 65_536):
                seen += piece
        except OSError:
            pass  # Linux: the other side is closed
        os.close(mine)
        assert process.wait(10) == 0
        assert expected in seen
