"""Certificates: what is loaded, what is refused and in which words, and whom one names."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path

import pytest

from kvnode.errors import StartupError
from kvnode.net.tls import Certificate, MutualCertificate, names
from tests.certificates import Authority


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    made = Authority(tmp_path_factory.mktemp("certificates"))
    for name in ("n1", "n2"):
        made.sign(name)
    return made


def test_peers_speak_the_newest_tls_and_clients_nothing_that_is_broken(authority: Authority) -> None:
    here = authority.folder
    peer = MutualCertificate("raft", here / "n1.pem", here / "n1-key.pem", authority.ca)
    for context in (peer.context, peer.dialling):
        assert context.minimum_version is ssl.TLSVersion.TLSv1_3
        assert context.verify_mode is ssl.CERT_REQUIRED
    assert peer.dialling.check_hostname
    assert Certificate("tls", here / "n1.pem", here / "n1-key.pem").context.minimum_version is ssl.TLSVersion.TLSv1_2


def test_a_certificate_that_cannot_be_used_is_refused_in_a_sentence(authority: Authority, tmp_path: Path) -> None:
    here = authority.folder
    locked, garbage = tmp_path / "locked.pem", tmp_path / "garbage.pem"
    encrypt = ["openssl", "pkey", "-aes256", "-passout", "pass:x", "-in", str(here / "n1-key.pem"), "-out", str(locked)]
    subprocess.run(encrypt, check=True, capture_output=True, timeout=10)
    garbage.write_text("no certificate")
    for cert, key, part in (
        (here / "none.pem", here / "n1-key.pem", "No such file"),
        (here / "n1.pem", here / "n2-key.pem", "mismatch"),
        (garbage, here / "n1-key.pem", "it is not PEM"),
        (here / "n1.pem", locked, "unencrypted key"),
    ):
        with pytest.raises(StartupError, match=part) as refused:
            Certificate("tls", cert, key)
        assert refused.value.message.startswith("--tls-cert")
        assert refused.value.message.endswith(".")
    with pytest.raises(StartupError, match="--raft-ca"):
        MutualCertificate("raft", here / "n1.pem", here / "n1-key.pem", garbage)


def test_a_reload_is_whole_or_does_not_happen(authority: Authority, tmp_path: Path) -> None:
    for name in ("n1.pem", "n1-key.pem", "ca.pem"):
        (tmp_path / name).write_bytes((authority.folder / name).read_bytes())
    peer = MutualCertificate("raft", tmp_path / "n1.pem", tmp_path / "n1-key.pem", tmp_path / "ca.pem")
    before = (peer.context, peer.dialling)
    (tmp_path / "ca.pem").write_text("no certificate")
    with pytest.raises(StartupError):
        peer.reload()
    assert (peer.context, peer.dialling) == before
    (tmp_path / "ca.pem").write_bytes(authority.ca.read_bytes())
    peer.reload()
    assert peer.context is not before[0]
    assert peer.dialling is not before[1]


@pytest.mark.parametrize(
    ("alternatives", "named"),
    [
        ((("DNS", "n1"),), True),
        ((("IP Address", "127.0.0.1"), ("DNS", "N1")), True),
        ((("DNS", "n11"),), False),
        ((("DNS", "*"),), False),
        ((("IP Address", "n1"),), False),
        ((), False),
    ],
)
def test_whom_a_certificate_names(alternatives: tuple[tuple[str, str], ...], named: bool) -> None:
    assert names({"subjectAltName": alternatives}, "n1") is named
    assert not names(None, "n1")
