"""Kubernetes, systemd and Envoy files: valid by schema or by their own checker, and right about kvnode itself."""

from __future__ import annotations

import re
import shutil
import ssl
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import kubernetes_validate
import pytest
import yaml

from kvnode.config import layers
from kvnode.config.options import OPTIONS
from kvnode.http import checks
from kvnode.net.tls import MutualCertificate, names
from tests.balancer import HAPROXY, needs_haproxy
from tests.cluster import Cluster
from tests.deploy.proxy import DEPLOY

KUBERNETES = DEPLOY / "kubernetes"
SYSTEMD_ANALYZE = shutil.which("systemd-analyze")
PROBES = {"/healthz", "/livez", "/readyz", "/admin/healthz/leader"}


def manifests(name: str) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all((KUBERNETES / name).read_text()) if document]


def one(kind: str, name: str, file: str = "kvnode.yaml") -> dict[str, Any]:
    (found,) = [each for each in manifests(file) if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return found


@pytest.mark.parametrize("file", ["kvnode.yaml", "haproxy.yaml"])
@pytest.mark.parametrize("version", ["1.25", kubernetes_validate.latest_version()])
def test_every_manifest_fits_the_schema_of_kubernetes(file: str, version: str) -> None:
    for document in manifests(file):
        kubernetes_validate.validate(document, version, strict=True)


def test_the_schema_is_really_asked() -> None:
    broken = one("StatefulSet", "kvnode")
    broken["spec"]["podManagementPolicy"] = 3
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, kubernetes_validate.latest_version(), strict=True)


def test_the_statefulset_is_what_a_cluster_needs() -> None:
    stateful = one("StatefulSet", "kvnode")["spec"]
    peers = one("Service", "kvnode-peers")["spec"]
    assert stateful["podManagementPolicy"] == "Parallel"
    assert peers["publishNotReadyAddresses"] is True
    assert peers["clusterIP"] == "None"
    assert stateful["serviceName"] == "kvnode-peers"
    assert one("PodDisruptionBudget", "kvnode")["spec"]["maxUnavailable"] == 1
    (container,) = stateful["template"]["spec"]["containers"]
    asked = [container[f"{probe}Probe"]["httpGet"] for probe in ("startup", "liveness", "readiness")]
    assert [each["path"] for each in asked] == ["/healthz", "/livez", "/readyz"]
    assert {each["port"] for each in asked} == {"probes"}


def test_what_kubernetes_does_before_it_stops_a_node_makes_it_drain(
    make_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text("a-token-of-forty-characters-for-this-test\n")
    file.chmod(0o440)  # as the StatefulSet mounts it
    cluster = make_cluster(size=1, env={"KVNODE_TOKEN_FILE": str(file)}).start()
    (container,) = one("StatefulSet", "kvnode")["spec"]["template"]["spec"]["containers"]
    shell, option, script = container["lifecycle"]["preStop"]["exec"]["command"]
    program = Path(sys.executable).parent  # where the image has its own in PATH, and the port that is the default
    environment = {"PATH": f"{program}:/usr/bin:/bin", "KVNODE_URL": cluster.url("n1"), "KVNODE_TOKEN_FILE": str(file)}
    assert script.endswith("; sleep 3")
    command = [shell, option, script.removesuffix("; sleep 3")]
    # The last node that is ready is not drained, which is exit code 1; the shell goes on to its pause all the same, and
    # SIGTERM, which comes next, drains it.
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 1
    assert "No node but n1 would be ready" in done.stderr
    # step: with others that are ready, it drains
    cluster = make_cluster(size=3, env={"KVNODE_TOKEN_FILE": str(file)}).start()
    environment["KVNODE_URL"] = cluster.url("n2")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=20, check=False)
    assert (done.returncode, done.stdout.startswith("n2 is draining")) == (0, True)
    assert cluster.probe("n2", "/readyz/draining") == 503


@pytest.fixture
def peers_secret(tmp_path: Path) -> Path:
    """The files of the Secret `kvnode-peers`, as its script makes them."""
    command = ["sh", str(KUBERNETES / "certificates.sh"), "3"]
    subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=60, check=True)
    return tmp_path / "certificates" / "peers"


def test_the_pods_know_each_other_by_their_certificates(peers_secret: Path, tmp_path: Path) -> None:
    def certificate(pod: str) -> MutualCertificate:
        files = (peers_secret / name for name in (f"{pod}.pem", f"{pod}.key", "ca.pem"))
        return MutualCertificate("raft", *files)

    def greet(dialler: str, acceptor: str, asked: str) -> dict[str, Any]:
        to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = certificate(dialler).dialling.wrap_bio(to_client, to_server, server_hostname=asked)
        server = certificate(acceptor).context.wrap_bio(to_server, to_client, server_side=True)
        for _ in range(3):
            for side in (client, server):
                with suppress(ssl.SSLWantReadError):
                    side.do_handshake()
        return server.getpeercert() or {}

    assert names(greet("kvnode-0", "kvnode-1", "kvnode-1"), "kvnode-0")
    assert not names(greet("kvnode-0", "kvnode-1", "kvnode-1"), "kvnode-2")
    with pytest.raises(ssl.SSLCertVerificationError):
        greet("kvnode-0", "kvnode-2", "kvnode-1")
    assert not (peers_secret / "ca.key").exists(), "what signs goes into no pod"
    assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "certificates").rglob("*"))

    # step: what is there stays, and more pods get what they lack
    before = {path.name: path.read_bytes() for path in peers_secret.iterdir()}
    command = ["sh", str(KUBERNETES / "certificates.sh"), "5"]
    subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=60, check=True)
    assert {name: (peers_secret / name).read_bytes() for name in before} == before
    assert names(greet("kvnode-4", "kvnode-0", "kvnode-0"), "kvnode-4")


def test_haproxy_lets_in_clients_alone_and_is_asked_where_the_kubelet_reaches_it() -> None:
    policy = one("NetworkPolicy", "kvnode-haproxy", "haproxy.yaml")["spec"]
    pods = one("Deployment", "kvnode-haproxy", "haproxy.yaml")["spec"]["template"]
    assert policy["podSelector"]["matchLabels"].items() <= pods["metadata"]["labels"].items()
    assert policy["policyTypes"] == ["Ingress"]
    (container,) = pods["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    (rule,) = policy["ingress"]
    assert rule["from"] == [{"podSelector": {"matchLabels": {"kvnode-client": "true"}}}]
    assert rule["ports"] == [{"port": ports["clients"]}]
    command = ["sh", str(KUBERNETES / "haproxy-config.sh")]
    text = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    assert f"bind :{ports['health']}\n  monitor-uri /healthz\n" in text
    assert {container[f"{probe}Probe"]["httpGet"]["port"] for probe in ("readiness", "liveness")} == {"health"}


@pytest.mark.parametrize("number", [0, 1, 2])
def test_each_pod_gets_options_that_a_node_takes(number: int, tmp_path: Path, peers_secret: Path) -> None:
    spec = one("StatefulSet", "kvnode")["spec"]["template"]["spec"]
    pod = f"kvnode-{number}"
    environment: dict[str, str] = {}
    for variable in spec["containers"][0]["env"]:
        value = variable.get("value", pod)
        environment[variable["name"]] = re.sub(r"\$\((\w+)\)", lambda found: environment[found[1]], value)
    assert set(environment) <= {option.variable for option in OPTIONS}
    secret = tmp_path / "secret"
    secret.write_text("0123456789abcdef0123456789abcdef")
    own = {}
    for mount in spec["containers"][0]["volumeMounts"]:
        if mount["name"] == "peers":
            inside = mount.get("subPath") or mount["subPathExpr"].replace("$(KVNODE_NODE_ID)", pod)
            own[mount["mountPath"]] = str(peers_secret / inside)
    assert sorted(Path(path).name for path in own.values()) == ["ca.pem", f"{pod}.key", f"{pod}.pem"]
    environment = {name: own.get(value, value) for name, value in environment.items()}
    files = {name: path for name, path in environment.items() if name.endswith("_FILE")}
    mounts = [mount["mountPath"] for mount in spec["containers"][0]["volumeMounts"]]
    assert {str(Path(path).parent) for path in files.values()} <= set(mounts)
    node = layers.load({}, environment | dict.fromkeys(files, str(secret)))
    assert (bool(node.security.token), node.security.insecure) == (True, False)
    assert [warning.partition(":")[0] for warning in node.warnings] == ["HTTP off loopback without TLS"]
    assert node.security.raft_tls is not None
    assert MutualCertificate("raft", *node.security.raft_tls).context.get_ca_certs()
    assert (node.node_id, len(node.peers)) == (pod, 3)
    assert node.peers[pod] == (f"{pod}.kvnode-peers", 7001)
    assert node.advertise_http == f"http://{pod}.kvnode-peers:8001"


@pytest.mark.parametrize("namespace", [None, "shop"])
@needs_haproxy
def test_haproxy_takes_its_configuration_for_kubernetes(namespace: str | None, tmp_path: Path) -> None:
    command = ["sh", str(KUBERNETES / "haproxy-config.sh"), *([namespace] if namespace else [])]
    text = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    for number in range(3):
        assert f" kvnode-{number}.kvnode-peers.{namespace or 'default'}.svc.cluster.local:8001" in text
        assert f" n{number + 1}:8001" not in text
    # Names that do not exist take a name server's patience to find out.
    (tmp_path / "haproxy.cfg").write_text(re.sub(r" kvnode-\S+:8001", " 127.0.0.1:8001", text))
    assert HAPROXY is not None
    subprocess.run([HAPROXY, "-c", "-f", str(tmp_path / "haproxy.cfg")], capture_output=True, timeout=20, check=True)


def test_what_the_secured_containers_mount_is_taken_by_haproxy_and_nodes(tmp_path: Path) -> None:
    for name in ("deploy", "haproxy"):
        shutil.copytree(DEPLOY.parent / name, tmp_path / name)
    subprocess.run(["sh", str(tmp_path / "deploy" / "compose-secrets.sh")], capture_output=True, timeout=60, check=True)
    made = tmp_path / "secrets"
    token = (made / "token").read_text()
    for file in made.iterdir():  # as kvnode 0.1 left them, whose nodes took secrets that everybody can read
        file.chmod(0o644)
    (made / "haproxy.cfg").write_text("of kvnode 0.1")
    subprocess.run(["sh", str(tmp_path / "deploy" / "compose-secrets.sh")], capture_output=True, timeout=60, check=True)
    assert (made / "token").read_text() == token, "they are made once"
    assert made.stat().st_mode & 0o077 == 0
    secret = [made / "cluster-secret", made / "token", *made.glob("*.key"), made / "haproxy.crt"]
    assert [file.name for file in secret if file.stat().st_mode & 0o007] == []
    services = {
        file: yaml.safe_load((DEPLOY.parent / file).read_text())["services"]
        for file in ("docker-compose.yml", "docker-compose.secure.yml")
    }
    for name in ("n1", "n2", "n3"):
        environment: dict[str, str] = {}
        for file in services.values():
            environment |= file[name]["environment"]
        mounts = [volume.split(":") for volume in services["docker-compose.secure.yml"][name]["volumes"]]
        real = {inside: str(tmp_path / outside) for outside, inside, mode in mounts if mode == "ro"}
        node = layers.load({}, {variable: real.get(value, value) for variable, value in environment.items()})
        assert (node.node_id, node.security.insecure, bool(node.security.token)) == (name, False, True)
        assert node.warnings == ()
        assert node.security.tls is not None
        assert node.security.raft_tls is not None
        assert node.advertise_http == f"https://{name}:8001"
        certificate = MutualCertificate("raft", *node.security.raft_tls)
        assert certificate.context.get_ca_certs()
    if HAPROXY is not None:
        text = (made / "haproxy.cfg").read_text()
        assert len(re.findall(r"^  server .* ssl verify required ", text, flags=re.MULTILINE)) == text.count(
            "  server n"
        )
        here = re.sub(r" n\d:8001", " 127.0.0.1:8001", text.replace("/run/secrets", str(made)))
        (made / "here.cfg").write_text(here)
        subprocess.run([HAPROXY, "-c", "-f", str(made / "here.cfg")], capture_output=True, timeout=20, check=True)


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    unit = (DEPLOY / "systemd" / "kvnode.service").read_text()
    variables = dict(re.findall(r"^Environment=(\w+)=(.*)$", unit, flags=re.MULTILINE))
    file = dict(re.findall(r"^(\w+)=(.*)$", (DEPLOY / "systemd" / "kvnode.env").read_text(), flags=re.MULTILINE))
    secret = tmp_path / "secret"
    secret.write_text("0123456789abcdef0123456789abcdef")
    assert set(variables | file) <= {option.variable for option in OPTIONS}
    node = layers.load({}, variables | file | {"KVNODE_CLUSTER_SECRET_FILE": str(secret)})
    assert (node.node_id, len(node.peers)) == ("n1", 3)
    if SYSTEMD_ANALYZE is None:
        pytest.skip("needs systemd-analyze: apt-get install systemd")
    # The checker wants to see the program; everything else stays as it is.
    (tmp_path / "kvnode.service").write_text(unit.replace("/opt/kvnode/bin/kvnode", "/bin/true"))
    done = subprocess.run(
        [SYSTEMD_ANALYZE, "verify", "--man=no", str(tmp_path / "kvnode.service")],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_envoy_asks_what_a_node_answers() -> None:
    """Envoy itself is not run: no Debian package has it."""
    document = yaml.safe_load((DEPLOY / "envoy" / "envoy.yaml").read_text())["static_resources"]
    clusters = {cluster["name"]: cluster for cluster in document["clusters"]}
    manager = document["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    routes = manager["route_config"]["virtual_hosts"][0]["routes"]
    assert {route["route"]["cluster"] for route in routes} <= set(clusters)
    assert set(clusters["leader_or_any"]["cluster_type"]["typed_config"]["clusters"]) == {"leader", "any"}
    for name in ("leader", "any"):
        (check,) = clusters[name]["health_checks"]
        path = urlsplit(check["http_health_check"]["path"])
        assert path.path in PROBES
        assert set(re.findall(r"exclude=(\w+)", path.query)) <= set(checks.READY)
        assert len(clusters[name]["load_assignment"]["endpoints"][0]["lb_endpoints"]) == 3
