"""A stale read says how stale it may be, also of a node that has just been started alone, and of what is not there."""

from __future__ import annotations

from tests.cluster import Cluster, wait_until


def test_a_node_that_starts_alone_counts_what_its_own_log_holds(cluster: Cluster) -> None:
    for number in range(50):
        cluster.put(f"k{number}", b"v")
    found = cluster.request("n2", "GET", "/v1/kv/missing?consistency=stale")
    assert (found.status, found.headers["Kvnode-Applied-Lag"]) == (404, "0")
    assert "Kvnode-Applied-Lag" not in cluster.request("n2", "GET", "/v1/kv/missing").headers
    for name in cluster.nodes:
        cluster.kill(name)
    cluster.spawn("n2")
    wait_until(lambda: cluster.probe("n2", "/readyz/startup") == 200, 10.0, "n2 has loaded what it holds")
    for path in ("/v1/kv/k0", "/v1/leases/1"):
        answer = cluster.request("n2", "GET", f"{path}?consistency=stale")
        assert answer.status == 404, "nothing of its log is known to be committed"
        assert int(answer.headers["Kvnode-Applied-Lag"]) >= 50
    listed = cluster.request("n2", "GET", "/v1/kv?consistency=stale")
    assert (listed.json()["items"], int(listed.headers["Kvnode-Applied-Lag"]) >= 50) == ([], True)
    for name in ("n1", "n3"):
        cluster.spawn(name)
    cluster.wait_ready()
    wait_until(
        lambda: cluster.request("n2", "GET", "/v1/kv/k0?consistency=stale").headers["Kvnode-Applied-Lag"] == "0",
        5.0,
        "it has caught up",
    )
    assert cluster.request("n2", "GET", "/v1/kv/k0?consistency=stale").body == b"v"
