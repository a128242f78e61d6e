"""What three real nodes write to their logs: leaders with reasons, and requests on their way."""

from __future__ import annotations

import json
from typing import Any

from tests.cluster import Cluster, wait_until


def lines(cluster: Cluster, node: str, **fields: Any) -> list[dict[str, Any]]:
    """The node's log lines, each an object of its own, that have these fields."""
    found = [json.loads(line) for line in cluster.log(node).splitlines()]
    return [line for line in found if all(line.get(name) == value for name, value in fields.items())]


def test_a_request_is_found_under_its_id_where_it_came_in_and_on_the_leader(trio: Cluster) -> None:
    leader, follower = trio.leader(), trio.followers()[0]
    answer = trio.request(follower, "PUT", "/v1/kv/a%20b?ttl=60", b"1", {"X-Request-Id": "order 17"})
    assert (answer.status, answer.headers["X-Request-Id"]) == (200, "order 17")
    (came_in,) = wait_until(
        lambda: lines(trio, follower, event="request", request_id="order 17"), 5.0, "the follower's line"
    )
    assert came_in["path"] == "/v1/kv/a%20b?ttl=60"
    assert (came_in["method"], came_in["status"], came_in["node"]) == ("PUT", 200, follower)
    assert came_in["duration_ms"] > 0
    assert came_in["client"] == "127.0.0.1"
    taken = wait_until(lambda: lines(trio, leader, event="forwarded", request_id="order 17"), 5.0, "the leader's line")
    assert [line["from"] for line in taken] == [follower]

    made = trio.request(follower, "DELETE", "/v1/kv/a%20b").headers["X-Request-Id"]
    assert wait_until(lambda: lines(trio, leader, event="forwarded", request_id=made), 5.0, "a made id on the leader")
    assert lines(trio, leader, request_id=None, event="forwarded") == []


def test_each_change_of_leader_is_one_line_with_its_reason_on_each_node(trio: Cluster) -> None:
    old = trio.leader()
    new = trio.transfer()
    term = trio.status(new)["term"]
    for node in trio.nodes:
        (line,) = wait_until(lambda node=node: lines(trio, node, leader=new, term=term), 5.0, f"{node} says who leads")
        assert (line["event"], line["previous"], line["level"]) == ("leadership", old, "info")
        assert line["reason"] == (f"{old} handed over" if node == new else line["reason"])
        assert line["message"] == f"{new} leads in term {term}: {line['reason']}."
    (stepped_down,) = lines(trio, old, event="leadership", leader=None, term=term)
    assert stepped_down["reason"] == f"the term {term} has begun"

    trio.kill(new)
    last = trio.leader()
    term = trio.status(last)["term"]
    for node in trio.awake():
        (line,) = wait_until(lambda node=node: lines(trio, node, leader=last, term=term), 5.0, f"{node} says who leads")
        assert (line["previous"], line["reason"]) == (new, f"the connection with {new} closed")
    trio.restart(new)


def test_a_leader_that_nobody_answers_says_so_when_it_gives_up(trio: Cluster) -> None:
    leader, others = trio.leader(), trio.followers()
    for each in others:
        trio.freeze(each)
    gave_up = wait_until(
        lambda: lines(trio, leader, event="leadership", leader=None, reason="no majority answered it in time"),
        10.0,
        "the leader gives up",
    )
    for each in others:
        trio.thaw(each)
    assert gave_up[0]["previous"] == leader
    assert trio.leader()
