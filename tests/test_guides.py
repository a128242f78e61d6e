"""docs/guides/: each page from its beginning, in one shell in an empty folder, with the files that it says to save."""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.balancer import HAPROXY
from tests.cluster import PROJECT, Cluster, free_ports, request
from tests.deploy.test_manifests import KUBERNETES, manifests, one
from tests.gateway import patroni
from tests.test_operating import Shell, do, elsewhere, prefixes

GUIDES = PROJECT / "docs" / "guides"
STEP = re.compile(
    r"^<!-- (?:(?P<run>run)|file: (?P<file>\S+)) -->\n```\w+\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
# What ports begin with: of nodes, their peers and HAProxy; of Patroni and PostgreSQL.
PORTS = ("820", "720", "808", "840")
MORE_PORTS = {"patroni.md": ("800", "543")}
NEEDS = {
    "haproxy.md": (HAPROXY is not None, "needs HAProxy: apt-get install haproxy"),
    "kubernetes.md": (shutil.which("openssl") is not None, "needs openssl: apt-get install openssl"),
    "patroni.md": (patroni.installed(), patroni.NEEDS),
}


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    for name in ("haproxy", "deploy"):  # what a checkout holds, and the package does not
        (tmp_path / name).symlink_to(PROJECT / name)
    shell = Shell(tmp_path)
    yield shell
    shell.close()
    for file in tmp_path.glob("*/postmaster.pid"):  # PostgreSQL outlives the Patroni that a failed test left
        with suppress(ProcessLookupError):
            os.kill(int(file.read_text().split()[0]), signal.SIGQUIT)


def prepare(shell: Shell) -> None:
    """The programs where their packages put them, and PostgreSQL as a user that may run it where this one is root."""
    programs = [*filter(None, [HAPROXY]), patroni.PATRONI / "patroni"]
    shell.run(f'export PATH="$PATH:{":".join(str(Path(program).parent) for program in programs)}"')
    if os.geteuid() == 0 and patroni.installed():
        shutil.chown(shell.folder, patroni.USER)
        command = " ".join(map(str, patroni.unprivileged([patroni.PATRONI / "patroni"])))
        shell.run(f'patroni() {{ exec {command} "$@"; }}')


@pytest.mark.alone
@pytest.mark.timeout(240)
@pytest.mark.parametrize("name", sorted(path.name for path in GUIDES.glob("*.md")))
def test_a_guide_does_what_it_says(name: str, shell: Shell) -> None:
    is_here, needs = NEEDS.get(name, (True, ""))
    if not is_here:
        pytest.skip(needs)
    prepare(shell)
    found = list(STEP.finditer((GUIDES / name).read_text()))
    assert len(found) >= 2
    shown = (*PORTS, *MORE_PORTS.get(name, ()))
    ports = dict(zip(shown, prefixes(len(shown)), strict=True))
    for step in found:
        text = elsewhere(step["text"], ports)
        if step["run"]:
            do(shell, text)
        else:
            (shell.folder / step["file"]).write_text(text)


def test_the_guide_to_kubernetes_names_what_the_manifests_have() -> None:
    page = (GUIDES / "kubernetes.md").read_text()
    commands = re.findall(r"^\$ (kubectl .*)$", page, re.MULTILINE)
    assert len(commands) >= 7
    mounted = [one("StatefulSet", "kvnode"), one("Deployment", "kvnode-haproxy", "haproxy.yaml")]
    volumes = [volume for each in mounted for volume in each["spec"]["template"]["spec"]["volumes"]]
    wanted = {f"secret generic {each['secret']['secretName']}" for each in volumes if "secret" in each}
    wanted |= {f"configmap {each['configMap']['name']}" for each in volumes if "configMap" in each}
    made = {" ".join(re.findall(r"(?<=create )[^-]\S*(?: [^-]\S*)*", each)) for each in commands if " create " in each}
    assert made == wanted
    applied = {found[1] for each in commands if (found := re.search(r"apply -f (\S+)", each))}
    assert applied == {f"deploy/kubernetes/{path.name}" for path in KUBERNETES.glob("*.yaml")}
    services = {each["metadata"]["name"] for path in applied for each in manifests(Path(path).name)}
    assert set(re.findall(r"http://([\w-]+):8001", page)) <= services
    (container,) = mounted[0]["spec"]["template"]["spec"]["containers"]
    assert f"image: {container['image']}" in page
    labels = set(re.findall(r'`(kvnode-\w+: "true")`', page))
    assert labels
    assert all(label in (KUBERNETES / "kvnode.yaml").read_text() for label in labels)


def test_the_probes_of_the_manifest_are_answered_without_a_token(make_cluster: Callable[..., Cluster]) -> None:
    (container,) = one("StatefulSet", "kvnode")["spec"]["template"]["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    (bound,) = [each["value"] for each in container["env"] if each["name"] == "KVNODE_PROBES"]
    assert bound.endswith(f":{ports['probes']}")
    (port,) = free_ports(1)
    token = "a-token-of-forty-characters-for-this-test"
    cluster = make_cluster(size=1, env={"KVNODE_TOKEN": token, "KVNODE_PROBES": f"127.0.0.1:{port}"}, token=token)
    cluster.start()
    for kind in ("startup", "liveness", "readiness"):
        probe = container[f"{kind}Probe"]
        assert ports[probe["httpGet"]["port"]] == ports["probes"]
        path = probe["httpGet"]["path"]
        assert request(("127.0.0.1", port), "GET", path, timeout_s=probe["timeoutSeconds"]).status == 200, kind
