"""Every option, where it comes from, and every way to get it wrong."""

from __future__ import annotations

from ipaddress import IPv4Network
from pathlib import Path

import pytest

from kvnode.config import layers, options
from kvnode.config.layers import Config
from kvnode.config.security import Security
from kvnode.errors import StartupError
from kvnode.net.proxies import Proxies
from kvnode.state.session_keys import keys_of

SECRET = "0123456789abcdef"
SECRET_NAME = "KVNODE_CLUSTER_SECRET"
THREE = "n1=127.0.0.1:7001,n2=127.0.0.1:7002,n3=127.0.0.1:7003"


def load(**options: str) -> Config:
    """A Config from flags alone: `node_id="n2"` is `--node-id n2`."""
    return layers.load({name.replace("_", "-"): text for name, text in options.items()}, {})


def refusal(flags: dict[str, str], environ: dict[str, str] | None = None, file: Path | None = None) -> str:
    with pytest.raises(StartupError) as caught:
        layers.load(flags, environ or {}, file)
    message = caught.value.message
    assert "\n" not in message
    assert message.endswith(".")
    return message


def test_the_defaults_are_a_single_node_on_loopback() -> None:
    c = load()
    assert (c.node_id, c.http, c.raft) == ("n1", ("127.0.0.1", 8001), ("127.0.0.1", 7001))
    assert dict(c.peers) == {"n1": ("127.0.0.1", 7001)}
    assert c.advertise_http == "http://127.0.0.1:8001"
    assert c.data_dir == Path("kvnode-data/n1")
    assert (c.security.secret, c.cluster_id, c.fsync, c.leader_probe, c.security.insecure) == (
        b"",
        None,
        "always",
        True,
        False,
    )
    assert (c.probe_timeout_s, c.election_timeout_min_s, c.election_timeout_max_s, c.heartbeat_s) == (
        0.5,
        0.6,
        1.2,
        0.1,
    )
    assert (c.log_format, c.log_level, c.warnings) == ("text", "info", ())


def test_a_flag_beats_the_environment_beats_the_file_beats_the_default(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text('fsync = "never"\nnode-id = "file"\nlog-level = "debug"\n')
    environ = {"KVNODE_FSYNC": "interval", "KVNODE_NODE_ID": "environment"}
    c = layers.load({"fsync": "always"}, environ, file)
    assert (c.fsync, c.node_id, c.log_level, c.log_format) == ("always", "environment", "debug", "text")


def test_every_option_can_be_set_in_the_environment(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(SECRET + "\n")
    given = {
        "node-id": "n2",
        "http": "[::1]:8002",
        "raft": "127.0.0.1:7002",
        "peers": THREE,
        "advertise-http": "https://n2.example.net",
        "data-dir": "/var/lib/kvnode",
        "cluster-secret-file": str(tmp_path / "secret"),
        "session-key-file": str(tmp_path / "secret"),
        "cluster-id": "blue",
        "fsync": "interval",
        "leader-probe": "off",
        "probe-timeout": "1.5s",
        "election-timeout": "1s-2s",
        "heartbeat": "50ms",
        "log-format": "json",
        "log-level": "warning",
        "log-requests": "on",
        "otel": "on",
        "insecure": "true",
        "token-file": str(tmp_path / "secret"),
        "tls-cert": "cert.pem",
        "tls-key": "key.pem",
        "tls-ca": "ca.pem",
        "tls-client-ca": "clients.pem",
        "raft-cert": "peer.pem",
        "raft-key": "peer-key.pem",
        "raft-ca": "peer-ca.pem",
        "allow-old-peers": "on",
        "probes": "127.0.0.1:9002",
        "trusted-proxies": "10.0.0.7, 192.168.0.0/16",
        "proxy-protocol": "on",
        "rate-limit": "100",
        "max-connections": "5000",
        "max-connections-per-client": "50",
    }
    joining = {"join": "http://a:1,http://b:2/", "advertise-raft": "n2:7002"}  # instead of peers and cluster-id
    assert set(given | joining) == {option.name for option in options.OPTIONS}
    environ = {option.variable: given[option.name] for option in options.OPTIONS if option.name in given}
    by_variable = layers.load({}, environ)
    file = tmp_path / "node.toml"
    file.write_text(
        "".join(f'{name} = "{text}"\n' for name, text in given.items() if name != "insecure") + "insecure = true\n"
    )
    by_flag = layers.load(given, {})
    assert by_variable == by_flag == layers.load({}, {}, file)
    assert by_flag == Config(
        node_id="n2",
        http=("::1", 8002),
        raft=("127.0.0.1", 7002),
        peers={"n1": ("127.0.0.1", 7001), "n2": ("127.0.0.1", 7002), "n3": ("127.0.0.1", 7003)},
        advertise_http="https://n2.example.net",
        data_dir=Path("/var/lib/kvnode"),
        security=Security(
            secret=SECRET.encode(),
            token_file=tmp_path / "secret",
            token=SECRET,
            insecure=True,
            tls=(Path("cert.pem"), Path("key.pem")),
            tls_ca=Path("ca.pem"),
            tls_client_ca=Path("clients.pem"),
            raft_tls=(Path("peer.pem"), Path("peer-key.pem"), Path("peer-ca.pem")),
            peers_0_1=True,
            probes=("127.0.0.1", 9002),
            proxies=Proxies((IPv4Network("10.0.0.7"), IPv4Network("192.168.0.0/16")), prefaced=True),
            rate_limit=100,
            connections_max=5000,
            connections_per_client=50,
            warnings=by_flag.security.warnings,
        ),
        cluster_id="blue",
        join=(),
        session_keys=keys_of(SECRET.encode()),
        fsync="interval",
        leader_probe=False,
        probe_timeout_s=1.5,
        election_timeout_min_s=1.0,
        election_timeout_max_s=2.0,
        heartbeat_s=0.05,
        log_format="json",
        log_level="warning",
        log_requests=True,
        otel=True,
        warnings=by_flag.security.warnings,
    )
    assert [warning.partition(":")[0] for warning in by_flag.warnings] == ["--allow-old-peers"]


def test_a_node_that_joins_names_no_peers() -> None:
    c = load(**{"node-id": "n4", "join": "http://a:1,http://b:2/", "raft": "127.0.0.1:7004"})
    assert (c.join, dict(c.peers)) == (("http://a:1", "http://b:2"), {"n4": ("127.0.0.1", 7004)})
    behind = layers.load(
        {"join": "http://a:1", "raft": "0.0.0.0:1", "advertise-raft": "n1:7001"}, {SECRET_NAME: SECRET}
    )
    assert dict(behind.peers) == {"n1": ("n1", 7001)}


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"join": "http://a:1", "peers": THREE}, "--join or --peers"),
        ({"join": "http://a:1", "cluster-id": "blue"}, "leave --cluster-id out"),
        ({"join": "a:1"}, "write a URL"),
        ({"advertise-raft": "a:1"}, "only a node that joins"),
        ({"join": "http://a:1", "raft": "0.0.0.0:7001"}, "--advertise-raft HOST:7001"),
    ],
)
def test_a_joining_that_cannot_be_is_refused(flags: dict[str, str], sentence: str) -> None:
    assert sentence in refusal(flags, {SECRET_NAME: SECRET})


def test_an_empty_variable_is_not_set() -> None:
    assert layers.load({}, {"KVNODE_HTTP": "", "KVNODE_CLUSTER_SECRET": ""}).http == ("127.0.0.1", 8001)


def test_peers_may_be_a_table_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text('[peers]\nn1 = "127.0.0.1:7001"\nn2 = "b:7002"\nn3 = "[::1]:7003"\n')
    assert dict(layers.load({}, {}, file).peers) == {"n1": ("127.0.0.1", 7001), "n2": ("b", 7002), "n3": ("::1", 7003)}


def test_a_secret_is_never_shown() -> None:
    assert SECRET not in repr(layers.load({}, {"KVNODE_CLUSTER_SECRET": SECRET, "KVNODE_TOKEN": SECRET}))


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        ({"node-id": ""}, ["--node-id", "1 to 63"]),
        ({"node-id": "a b"}, ["--node-id", "1 to 63"]),
        ({"node-id": "n" * 64}, ["--node-id", "1 to 63"]),
        ({"node-id": ".."}, ["--node-id", "letter or digit first"]),
        ({"node-id": "n1\n"}, ["--node-id", "1 to 63"]),
        ({"cluster-id": "a/b"}, ["--cluster-id", "1 to 63"]),
        ({"http": "8001"}, ["--http", "HOST:PORT"]),
        ({"http": ":8001"}, ["--http", "HOST:PORT"]),
        ({"http": "127.0.0.1:0"}, ["--http", "1 to 65535"]),
        ({"http": "127.0.0.1:65536"}, ["--http", "1 to 65535"]),
        ({"http": "127.0.0.1:http"}, ["--http", "1 to 65535"]),
        ({"http": "::1:8001"}, ["--http", "brackets", "[::1]:8001"]),
        ({"http": "[::g]:8001"}, ["--http", "[::1]:8001"]),
        ({"http": "http://x:8001"}, ["--http", "a URL"]),
        ({"raft": "-x:7001"}, ["--raft", "no host"]),
        ({"http": "127.0.0.1:7001"}, ["--raft", "cannot share"]),
        ({"http": "192.0.2.1:8001"}, ["--http", "--insecure"]),
        ({"http": "n1:8001"}, ["--http", "--insecure"]),
        ({"http": "0.0.0.0:8001", "insecure": "on"}, ["--http", "--advertise-http http://NAME:8001"]),
        ({"http": "[::]:8001", "insecure": "on"}, ["--http", "--advertise-http"]),
        ({"http": "127.0.0.1:8001", "advertise-http": "http://0.0.0.0:8001"}, ["--advertise-http", "others can reach"]),
        ({"advertise-http": "http://[::]:8001"}, ["--advertise-http", "others can reach"]),
        ({"advertise-http": "n1:8001"}, ["--advertise-http", "write a URL"]),
        ({"advertise-http": "http://"}, ["--advertise-http", "write a URL"]),
        ({"advertise-http": "http://[::1"}, ["--advertise-http", "write a URL"]),
        ({"advertise-http": "http://n1:99999"}, ["--advertise-http", "write a URL"]),
        ({"advertise-http": "http://u:p@n1:80"}, ["--advertise-http", "only scheme, host and port"]),
        ({"advertise-http": "http://n1/x"}, ["--advertise-http", "only scheme, host and port"]),
        ({"advertise-http": "http://n 1:80"}, ["--advertise-http", "host"]),
        ({"raft": "0.0.0.0:7001"}, ["--raft", "--cluster-secret-file", "KVNODE_CLUSTER_SECRET"]),
        ({"tls-cert": "a.pem"}, ["--tls-cert", "--tls-key"]),
        ({"raft-key": "a.pem", "raft-ca": "b.pem"}, ["--raft-key", "--raft-cert"]),
        ({"probes": "127.0.0.1:8001"}, ["--probes", "port that nothing else has"]),
        ({"proxy-protocol": "on"}, ["--proxy-protocol", "--trusted-proxies"]),
        ({"trusted-proxies": "haproxy"}, ["--trusted-proxies", "10.0.0.7"]),
        ({"rate-limit": "0"}, ["--rate-limit", "1 to 1000000"]),
        ({"max-connections": "many"}, ["--max-connections", "write a number"]),
        ({"raft": "n1:7001"}, ["--raft", "--cluster-secret-file"]),
        ({"peers": ""}, ["--peers", "no '='"]),
        ({"peers": "n1"}, ["--peers", "'n1'", "no '='"]),
        ({"peers": "n1=127.0.0.1"}, ["--peers", "HOST:PORT"]),
        ({"peers": "n1=127.0.0.1:x"}, ["--peers", "'x' is no port"]),
        ({"peers": THREE + ","}, ["--peers", "no '='"]),
        ({"peers": "n1=a:1,n1=b:2,n3=c:3"}, ["--peers", "n1 is named twice"]),
        ({"peers": "n1=a:1,n2=a:1,n3=c:3"}, ["--peers", "a:1 is used twice"]),
        ({"peers": "n1=0.0.0.0:7001,n2=a:1,n3=b:1"}, ["--peers", "0.0.0.0"]),
        ({"peers": "n 1=a:1"}, ["--peers", "'n 1' is no name"]),
        ({"peers": THREE, "node-id": "n4"}, ["--peers", "n4, is not in the list", "--node-id"]),
        ({"peers": "n1=a:1,n2=b:1"}, ["--peers", "1, 3, 5 or 7", "has 2"]),
        ({"peers": ",".join(f"n{i}=a:{i}" for i in range(1, 10))}, ["--peers", "7 at most", "has 9"]),
        ({"fsync": "sometimes"}, ["--fsync", "always, interval, never"]),
        ({"leader-probe": "maybe"}, ["--leader-probe", "on or off"]),
        ({"probe-timeout": "500"}, ["--probe-timeout", "its unit", "500ms"]),
        ({"probe-timeout": "1h"}, ["--probe-timeout", "its unit"]),
        ({"probe-timeout": "0ms"}, ["--probe-timeout", "10ms to 10s"]),
        ({"probe-timeout": "11s"}, ["--probe-timeout", "10ms to 10s"]),
        ({"probe-timeout": "-1s"}, ["--probe-timeout", "its unit"]),
        ({"probe-timeout": "nans"}, ["--probe-timeout", "its unit"]),
        ({"election-timeout": "1s"}, ["--election-timeout", "600-1200ms"]),
        ({"election-timeout": "600-1200"}, ["--election-timeout", "600-1200ms"]),
        ({"election-timeout": "1200-600ms"}, ["--election-timeout", "below the longest"]),
        ({"election-timeout": "600-600ms"}, ["--election-timeout", "below the longest"]),
        ({"election-timeout": "1-1200ms"}, ["--election-timeout", "50ms to 60s"]),
        ({"heartbeat": "200ms"}, ["--heartbeat", "below 200ms"]),
        ({"heartbeat": "1"}, ["--heartbeat", "its unit"]),
        ({"log-format": "xml"}, ["--log-format", "text, json"]),
        ({"log-level": "loud"}, ["--log-level", "debug, info"]),
        ({"cluster-secret-file": "/nonexistent/secret"}, ["--cluster-secret-file", "cannot be read"]),
    ],
)
def test_a_bad_value_is_refused_by_its_option_and_with_advice(flags: dict[str, str], parts: list[str]) -> None:
    message = refusal(flags)
    assert all(part in message for part in parts), message


@pytest.mark.parametrize("size", [1, 3, 5, 7])
def test_clusters_have_one_three_five_or_seven_members(size: int) -> None:
    assert len(load(peers=",".join(f"n{i}=127.0.0.1:{7000 + i}" for i in range(1, size + 1))).peers) == size


@pytest.mark.parametrize("text", ["600-1200ms", "600ms-1200ms", "0.6s-1.2s", "600ms-1.2s", "0.6-1.2s"])
def test_an_election_timeout_is_a_range(text: str) -> None:
    c = load(election_timeout=text)
    assert (c.election_timeout_min_s, c.election_timeout_max_s) == (0.6, 1.2)


def test_a_refusal_says_which_variable_or_file_the_value_came_from(tmp_path: Path) -> None:
    assert "--http 'x' (from KVNODE_HTTP)" in refusal({}, {"KVNODE_HTTP": "x"})
    file = tmp_path / "node.toml"
    file.write_text('http = "x"')
    assert f"--http 'x' (from {file})" in refusal({}, {}, file)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ('nodeid = "n1"', "'nodeid' is no option"),
        ('cluster-secret = "0123456789abcdef"', "'cluster-secret' is no option"),
        ("probe-timeout = 500", "probe-timeout must be text in quotes"),
        ("peers = [1]", "peers must be text in quotes"),
        ("[http]\nport = 1", "http must be text in quotes"),
        ("node-id = n1", "is not TOML"),
        ("node-id = \"a\"\nnode-id = 'b'", "is not TOML"),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, text: str, part: str) -> None:
    file = tmp_path / "node.toml"
    file.write_text(text)
    message = refusal({}, {}, file)
    assert part in message
    assert str(file) in message


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert "cannot be read: No such file" in refusal({}, {}, tmp_path / "none.toml")
    assert "cannot be read: Is a directory" in refusal({}, {}, tmp_path)


# --- tokens ------


def test_http_off_loopback_is_allowed_with_a_token() -> None:
    off = {"http": "192.0.2.1:8001"}
    by_variable = layers.load(off, {"KVNODE_TOKEN": SECRET})
    assert (by_variable.security.token, by_variable.security.insecure) == (SECRET, False)
    assert "without TLS" in by_variable.warnings[0]
    encrypted = layers.load(off | {"tls-cert": "c", "tls-key": "k"}, {"KVNODE_TOKEN": SECRET})
    assert (encrypted.warnings, encrypted.advertise_http) == ((), "https://192.0.2.1:8001")


@pytest.mark.parametrize("token", ["short", "a space in the middle of it", "ümlautümlautümlaut", "x" * 513])
def test_a_token_fits_into_a_header_line(token: str) -> None:
    assert "openssl rand -hex 32" in refusal({}, {"KVNODE_TOKEN": token})


# --- the secret -----------------------------------------------------------------------------------


def test_raft_off_loopback_is_allowed_with_a_secret(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(SECRET.encode() + b"\r\n")
    flags = {"raft": "0.0.0.0:7001", "peers": THREE}
    assert layers.load(flags, {"KVNODE_CLUSTER_SECRET": SECRET}).security.secret == SECRET.encode()
    by_file = layers.load({**flags, "cluster-secret-file": str(tmp_path / "secret")}, {})
    assert by_file.security.secret == SECRET.encode()


def test_raft_on_every_address_needs_its_own_name_in_peers() -> None:
    message = refusal({"raft": "0.0.0.0:7001"}, {"KVNODE_CLUSTER_SECRET": SECRET})
    assert "--peers n1=HOST:7001" in message


@pytest.mark.parametrize("content", ["", "\n", "too short", "x" * 4_097])
def test_a_secret_has_bounds(tmp_path: Path, content: str) -> None:
    (tmp_path / "secret").write_text(content)
    message = refusal({"cluster-secret-file": str(tmp_path / "secret")})
    assert "16 to 4096 bytes" in message
    assert "openssl rand" in message
    if content.strip():
        assert "KVNODE_CLUSTER_SECRET must be" in refusal({}, {"KVNODE_CLUSTER_SECRET": content})


def test_which_secret_counts_is_never_a_guess(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("f" * 16)
    path = str(tmp_path / "secret")
    (tmp_path / "node.toml").write_text(f'cluster-secret-file = "{path}"')
    variable = {"KVNODE_CLUSTER_SECRET": SECRET}
    assert layers.load({"cluster-secret-file": path}, variable).security.secret == b"f" * 16
    assert layers.load({}, variable, tmp_path / "node.toml").security.secret == SECRET.encode()
    assert "keep one of the two" in refusal({}, {**variable, "KVNODE_CLUSTER_SECRET_FILE": path})


def test_raft_off_loopback_without_certificates_says_what_can_be_read() -> None:
    off = {"raft": "192.0.2.1:7001", "peers": "n1=192.0.2.1:7001"}
    (warning,) = layers.load(off, {SECRET_NAME: SECRET}).warnings
    assert warning.startswith("Raft off loopback without --raft-cert: values and the hashes of tokens can be read")
    certificate = {"raft-cert": "c", "raft-key": "k", "raft-ca": "a"}
    assert layers.load(off | certificate, {SECRET_NAME: SECRET}).warnings == ()
    assert load(raft="127.0.0.1:7001").warnings == ()


def test_a_raft_port_that_peers_do_not_dial_is_only_a_warning() -> None:
    c = load(peers="n1=127.0.0.1:7101,n2=127.0.0.1:7002,n3=127.0.0.1:7003")
    assert len(c.warnings) == 1
    assert "127.0.0.1:7101" in c.warnings[0]
    assert load(peers=THREE).warnings == ()
