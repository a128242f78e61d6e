"""The page of an open cluster in a real browser: everything that it shows, and everything that it lets one do."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import PROJECT, Cluster, wait_until
from tests.console.browser import Visit, expect

AXE = PROJECT / ".venv" / "node_modules" / "axe-core" / "axe.min.js"
Visiting = Callable[..., Visit]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("console")) as made:
        made.start(30.0)
        yield made


@pytest.fixture(autouse=True)
def _all_there(cluster: Cluster) -> Iterator[None]:
    """Every test finds three nodes that take work."""
    yield
    for name in cluster.nodes:
        cluster.request(cluster.awake()[0], "DELETE", f"/admin/api/v1/drain?node={name}")
    cluster.wait_ready(30.0)


def fill(cluster: Cluster, prefix: str, count: int) -> None:
    """So many keys, a thousand at a time."""
    for start in range(0, count, 1_000):
        puts = [
            {"put": {"key": f"{prefix}{number:06}", "text": f"value {number}"}}
            for number in range(start, min(start + 1_000, count))
        ]
        body = json.dumps({"operations": puts}).encode()
        assert cluster.request(cluster.leader(), "POST", "/v1/batch", body).status == 200


def test_the_heading_and_the_members_say_what_the_cluster_says(cluster: Cluster, visit: Visiting) -> None:
    leader = cluster.leader()
    seen = visit(cluster.url("n1"))
    page = seen.page
    cluster_id = cluster.request("n1", "GET", "/admin/api/v1/members").json()["cluster_id"]
    expect(page.get_by_role("heading", level=1)).to_contain_text(cluster_id)
    expect(seen.status).to_have_text(re.compile(rf"{leader} leads in term \d+"))
    for name in cluster.nodes:
        row = seen.member(name)
        expect(row).to_have_count(1)
        expect(row).to_contain_text("leader" if name == leader else "follower")
        expect(row).to_contain_text("Ready")
        expect(row.get_by_role("button", name="Drain", exact=True)).to_have_count(1)
        expect(row.get_by_role("button", name="Remove", exact=True)).to_have_count(1)
        expect(row.get_by_role("button", name="Transfer leadership")).to_have_count(int(name == leader))
    applied = seen.member(leader).get_by_role("cell").nth(1)
    before = applied.inner_text()
    cluster.put("console/members", b"x")
    expect(applied).not_to_have_text(before, timeout=2_000)
    expect(page.get_by_role("button", name="Sign out")).to_have_count(0)


def test_a_transfer_is_asked_for_in_a_dialog_and_seen_within_two_seconds(cluster: Cluster, visit: Visiting) -> None:
    leader = cluster.leader()
    to = cluster.followers()[0]
    seen, other = visit(cluster.url("n1")), visit(cluster.url("n2"))
    expect(other.status).to_contain_text(f"{leader} leads")
    seen.member(leader).get_by_role("button", name="Transfer leadership").click()
    expect(seen.dialog).to_be_visible()
    seen.dialog.get_by_role("button", name="Cancel").click()
    expect(seen.dialog).to_have_count(0)
    assert cluster.leader() == leader
    seen.member(leader).get_by_role("button", name="Transfer leadership").click()
    seen.dialog.get_by_label("New leader").select_option(to)
    seen.answer_yes()
    wait_until(lambda: cluster.status(to)["leader_id"] == to, 5, "the transfer")
    done = time.monotonic()
    for page in (seen, other):
        expect(page.status).to_contain_text(f"{to} leads", timeout=2_000)
        expect(page.member(to)).to_contain_text("leader", timeout=2_000)
    assert time.monotonic() - done < 2.5
    expect(seen.dialog).to_have_count(0)
    timeline = seen.page.get_by_role("list", name="Timeline")
    newest = timeline.get_by_role("listitem").first
    expect(newest).to_contain_text(f"{to} leads in term")
    expect(newest).to_contain_text(f"{leader} handed over")
    expect(newest).to_contain_text(re.compile(r"without a (leader|gap)"))


def test_a_drain_and_its_end_and_a_refusal_in_the_nodes_own_words(cluster: Cluster, visit: Visiting) -> None:
    leader = cluster.leader()
    first, second = cluster.followers()
    seen = visit(cluster.url(leader))
    for name in (first, second):
        seen.member(name).get_by_role("button", name="Drain", exact=True).click()
        seen.answer_yes()
        expect(seen.member(name)).to_contain_text("draining", timeout=3_000)
        expect(seen.member(name).get_by_role("button", name="Undrain")).to_have_count(1)
    seen.refusals = {409}
    seen.member(leader).get_by_role("button", name="Drain", exact=True).click()
    seen.answer_yes()
    expect(seen.dialog.get_by_role("alert")).to_contain_text("No node but")
    expect(seen.dialog.get_by_role("button")).to_have_count(1)
    seen.page.keyboard.press("Escape")
    seen.member(first).get_by_role("button", name="Undrain").click()
    seen.answer_yes()
    expect(seen.member(first)).to_contain_text("follower", timeout=3_000)


def test_a_removal_that_cannot_be_is_refused_in_the_nodes_own_words(cluster: Cluster, visit: Visiting) -> None:
    gone = cluster.followers()[0]
    seen = visit(cluster.url(cluster.leader()))
    seen.refusals, seen.may_break = {409, 503}, True
    cluster.kill(gone)
    try:
        expect(seen.member(gone)).to_contain_text("unreachable", timeout=2_000)
        expect(seen.member(gone)).to_contain_text("Does not answer")
        other = next(name for name in cluster.followers() if name not in (gone, cluster.leader()))
        seen.member(other).get_by_role("button", name="Remove").click()
        seen.answer_yes()
        expect(seen.dialog.get_by_role("alert")).to_be_visible()
        assert len(cluster.request(other, "GET", "/admin/api/v1/members").json()["members"]) == 3
    finally:
        cluster.restart(gone, 30.0)
    seen.page.keyboard.press("Escape")
    expect(seen.member(gone)).to_contain_text("follower")


def test_no_leader_is_said_and_the_page_goes_on_showing(cluster: Cluster, visit: Visiting) -> None:
    cluster.put("console/leaderless", b"still here")
    seen = visit(cluster.url("n1"))
    expect(seen.status).to_contain_text("leads in term")
    seen.may_break = True
    for name in ("n2", "n3"):
        cluster.freeze(name)
    try:
        expect(seen.status).to_have_text("No leader")
        for name in ("n2", "n3"):
            expect(seen.member(name)).to_contain_text("unreachable")
        seen.prefix.fill("console/leaderless")
        expect(seen.keys.get_by_role("button", name="console/leaderless")).to_be_visible()
    finally:
        for name in ("n2", "n3"):
            cluster.thaw(name)
    expect(seen.status).to_contain_text("leads in term")


def test_a_hundred_thousand_keys_are_paged_and_counted(cluster: Cluster, visit: Visiting) -> None:
    fill(cluster, "many/", 100_000)
    seen = visit(cluster.url("n2"))
    seen.prefix.fill("many/")
    section = seen.page.get_by_role("region", name="Keys")
    expect(section).to_contain_text("of 100,000")
    expect(seen.keys.get_by_role("button", name="many/000000", exact=True)).to_be_visible()
    began = time.monotonic()
    seen.button("Next").click()
    expect(seen.keys.get_by_role("button", name="many/000020", exact=True)).to_be_visible()
    seen.button("Previous").click()
    expect(seen.keys.get_by_role("button", name="many/000000", exact=True)).to_be_visible()
    seen.prefix.fill("many/09999")
    expect(section).to_contain_text("1–10 of 10")
    assert time.monotonic() - began < 5
    assert seen.keys.get_by_role("row").count() == 11


def test_what_changes_on_the_page_is_marked(cluster: Cluster, visit: Visiting) -> None:
    for name in ("a", "b"):
        cluster.put(f"marks/{name}", b"1")
    seen = visit(cluster.url("n3"))
    seen.prefix.fill("marks/")
    row = seen.keys.get_by_role("row").filter(has_text="marks/a")
    expect(row).to_be_visible()
    expect(row).not_to_contain_text("changed")
    with seen.page.expect_response(lambda answer: "prefix=marks" in answer.url):
        pass
    revision = cluster.put("marks/a", b"2")["revision"]
    cluster.put("marks/c", b"1")
    cluster.request("n1", "DELETE", "/v1/kv/marks/b")
    expect(row).to_contain_text("changed", timeout=3_000)
    expect(row).to_contain_text(f"{revision:,}")
    expect(seen.keys.get_by_role("row").filter(has_text="marks/c")).to_contain_text("new")
    expect(seen.keys.get_by_role("row").filter(has_text="marks/b")).to_have_count(0)


def test_a_strangers_value_is_text_and_nothing_else(cluster: Cluster, visit: Visiting) -> None:
    hostile = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    key = "<b>bold</b>/<img src=x onerror=alert(1)>"
    cluster.request(
        "n1", "PUT", "/v1/kv/" + re.sub("[<> ]", lambda each: f"%{ord(each[0]):02X}", key), hostile.encode()
    )
    seen = visit(cluster.url("n1"))
    seen.choose_key(key)
    expect(seen.value).to_have_value(hostile)
    expect(seen.page.get_by_role("list", name="History")).to_contain_text(hostile)
    assert seen.page.locator("main img, main script, main b b").count() == 0
    assert "owned" not in seen.page.title()


def test_bytes_that_are_no_text_are_shown_and_saved_as_hex(cluster: Cluster, visit: Visiting) -> None:
    cluster.request("n1", "PUT", "/v1/kv/binary", bytes(range(40)) + b"\xff", {"Content-Type": "image/x-odd"})
    seen = visit(cluster.url("n1"))
    seen.choose_key("binary")
    expect(seen.value).to_have_value(re.compile(r"^00 01 02 .*\n10 11 .*\n20 21 22 23 24 25 26 27 ff$", re.S))
    expect(seen.page.get_by_label("Content type")).to_have_value("image/x-odd")
    expect(seen.page.get_by_role("radio", name="Text")).to_be_disabled()
    seen.value.fill("FF00 1")
    seen.button("Save").click()
    expect(seen.page.get_by_text("These are not pairs of hexadecimal digits.")).to_be_visible()
    seen.value.fill("ff 00 10")
    seen.button("Save").click()
    expect(seen.page.get_by_text("Saved.", exact=True)).to_be_visible()
    answer = cluster.request("n1", "GET", "/v1/kv/binary")
    assert (answer.body, answer.headers["Content-Type"]) == (b"\xff\x00\x10", "image/x-odd")


@pytest.mark.parametrize("key", ["..", "a/../b//", "/é %2F?#&+"])
def test_any_key_can_be_opened_saved_and_deleted(cluster: Cluster, visit: Visiting, key: str) -> None:
    put = json.dumps({"operations": [{"put": {"key": key, "text": "old"}}]}).encode()
    assert cluster.request("n1", "POST", "/v1/batch", put).status == 200
    seen = visit(cluster.url("n1"))
    seen.choose_key(key)
    expect(seen.value).to_have_value("old")
    seen.value.fill("new")
    seen.button("Save").click()
    expect(seen.page.get_by_text("Saved.", exact=True)).to_be_visible()
    assert found(cluster, key) == b"new"
    seen.button("Delete").click()
    expect(seen.page.get_by_text("Deleted. Save brings it back.")).to_be_visible()
    assert found(cluster, key) is None
    seen.button("Save").click()
    expect(seen.page.get_by_text("Saved.", exact=True)).to_be_visible()
    assert found(cluster, key) == b"new"


def found(cluster: Cluster, key: str) -> bytes | None:
    from urllib.parse import urlencode

    page = cluster.request("n1", "GET", "/v1/kv?" + urlencode({"start": key, "limit": 1})).json()
    items = [item for item in page["items"] if item["key"] == key]
    return base64.b64decode(items[0]["value"]) if items else None


def test_of_two_who_edit_one_key_neither_runs_over_the_other(cluster: Cluster, visit: Visiting) -> None:
    cluster.put("shared", b"first")
    anna, ben = visit(cluster.url("n1")), visit(cluster.url("n2"))
    for person in (anna, ben):
        person.choose_key("shared")
        expect(person.value).to_have_value("first")
    ben.refusals = {412}
    ben.value.fill("Ben's")
    anna.value.fill("Anna's")
    anna.button("Save").click()
    expect(anna.page.get_by_text("Saved.", exact=True)).to_be_visible()
    ben.button("Save").click()
    clash = ben.page.get_by_role("alert").filter(has_text="Somebody else has changed this key")
    expect(clash).to_contain_text("Anna's")
    expect(ben.value).to_have_value("Ben's")
    assert cluster.get("shared") == b"Anna's"
    ben.button("Keep mine").click()
    ben.button("Save").click()
    expect(ben.page.get_by_text("Saved.", exact=True)).to_be_visible()
    assert cluster.get("shared") == b"Ben's"
    expect(anna.value).to_have_value("Ben's")  # who has typed nothing since is shown what there is
    expect(anna.page.get_by_role("list", name="History").get_by_role("listitem")).to_have_count(3)


def test_a_key_that_is_not_there_is_written(cluster: Cluster, visit: Visiting) -> None:
    seen = visit(cluster.url("n1"))
    seen.prefix.fill("console/written/by hand")
    seen.button("Write a key of this name").click()
    seen.value.fill("new")
    seen.page.get_by_label("Content type").fill("text/plain")
    seen.button("Save").click()
    expect(seen.page.get_by_text("Saved.", exact=True)).to_be_visible()
    answer = cluster.request("n1", "GET", "/v1/kv/console/written/by%20hand")
    assert (answer.body, answer.headers["Content-Type"]) == (b"new", "text/plain")
    expect(seen.keys.get_by_role("button", name="console/written/by hand")).to_be_visible()


def test_a_key_with_a_time_to_live_keeps_it_when_it_is_saved(cluster: Cluster, visit: Visiting) -> None:
    cluster.request("n1", "PUT", "/v1/kv/mortal?ttl=300", b"1")
    seen = visit(cluster.url("n1"))
    seen.choose_key("mortal")
    expect(seen.keys.get_by_role("row").filter(has_text="mortal")).to_contain_text("min")
    seen.value.fill("2")
    seen.button("Save").click()
    expect(seen.page.get_by_text("Saved.", exact=True)).to_be_visible()
    answer = cluster.request("n1", "GET", "/v1/kv/mortal")
    assert answer.body == b"2"
    assert 200 < int(answer.headers["Kvnode-TTL"]) <= 300


def test_the_heat_map_shows_what_is_asked_for_and_a_cell_fills_in_the_prefix(cluster: Cluster, visit: Visiting) -> None:
    for number in range(20):
        cluster.put(f"hot/put/{number}", b"x", via="n2")
        cluster.get(f"hot/get/{number}", via="n3")
    seen = visit(cluster.url("n1"))
    heat = seen.page.get_by_role("img", name="Heat")
    expect(heat).to_be_visible()
    for prefix, kind in (("hot/put/", "writes"), ("hot/get/", "reads")):
        cell = heat.locator(f'rect.{kind}[data-prefix="{prefix}"]').last
        cell.click()
        expect(seen.prefix).to_have_value(prefix)
        assert heat.locator(f'rect[data-prefix="{prefix}"]:not(.{kind})').count() == 0
    expect(seen.keys.get_by_role("button", name="hot/get/0")).to_have_count(0)
    seen.page.get_by_role("region", name="Heat").get_by_role("button", name="hot/put/", exact=True).press("Enter")
    expect(seen.prefix).to_have_value("hot/put/")
    expect(seen.keys.get_by_role("button", name="hot/put/0", exact=True)).to_be_visible()


def test_the_figures_of_each_node_are_drawn(cluster: Cluster, visit: Visiting) -> None:
    for name in cluster.nodes:
        cluster.put(f"figures/{name}", b"x", via=name)
    seen = visit(cluster.url("n1"))
    for title in ("Writes per second", "Reads per second", "Write latency", "Fsync"):
        chart = seen.page.get_by_role("img", name=re.compile(f"^{title}, the last 15 minutes"))
        expect(chart).to_have_accessible_name(re.compile(r"n1 .*n2 .*n3 "), timeout=15_000)
        expect(chart.locator("path.line")).to_have_count(6 if title in ("Write latency", "Fsync") else 3)


def test_the_keyboard_is_enough(cluster: Cluster, visit: Visiting) -> None:
    cluster.put("keyboard/a", b"old")
    leader, to = cluster.leader(), cluster.followers()[0]
    seen = visit(cluster.url("n1"))
    page = seen.page
    expect(seen.member(leader)).to_be_visible()
    tab_to(page, "Transfer leadership")
    page.keyboard.press("Enter")
    expect(seen.dialog.get_by_role("button", name="Cancel")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Transfer leadership")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Shift+Tab")  # from Cancel to the choice of the new leader
    page.keyboard.type(to)
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(seen.status).to_contain_text(f"{to} leads")
    tab_to(page, "Prefix")
    page.keyboard.type("keyboard/")
    expect(seen.keys.get_by_role("row")).to_have_count(2)
    tab_to(page, "keyboard/a")
    page.keyboard.press("Enter")
    expect(seen.value).to_have_value("old")
    tab_to(page, "Value")
    page.keyboard.press("Control+A")
    page.keyboard.type("new")
    tab_to(page, "Save")
    page.keyboard.press("Enter")
    expect(page.get_by_text("Saved.", exact=True)).to_be_visible()
    assert cluster.get("keyboard/a") == b"new"


def tab_to(page: Any, name: str) -> None:
    """Presses the tabulator until what has that name has the focus, and shows it."""
    for _ in range(120):
        page.keyboard.press("Tab")
        focused = page.evaluate(
            """() => {
                const it = document.activeElement;
                const named = it.labels?.[0]?.textContent ?? it.getAttribute("aria-label") ?? it.textContent;
                const style = getComputedStyle(it);
                return [named.trim(), style.outlineStyle !== "none" && style.outlineWidth !== "0px"];
            }"""
        )
        if focused[0] == name:
            assert focused[1], f"{name} does not show that it has the focus"
            return
    raise AssertionError(f"no way to {name} with the tabulator")


@pytest.mark.skipif(not AXE.exists(), reason="needs axe-core: npm install --prefix .venv axe-core")
@pytest.mark.parametrize(("scheme", "width"), [("light", 1360), ("dark", 1360), ("light", 390)])
def test_axe_finds_nothing_serious(cluster: Cluster, visit: Visiting, scheme: str, width: int) -> None:
    cluster.put("axe/a", b"x")
    seen = visit(cluster.url("n1"), color_scheme=scheme, bypass_csp=True, reduced_motion="reduce")
    seen.page.set_viewport_size({"width": width, "height": 900})
    seen.choose_key("axe/a")
    expect(seen.page.get_by_role("list", name="Timeline").get_by_role("listitem").first).to_be_visible()
    violations(seen)
    seen.member("n1").get_by_role("button", name="Drain", exact=True).click()
    expect(seen.dialog).to_be_visible()
    violations(seen)
    assert seen.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page scrolls sideways"


def violations(seen: Visit) -> None:
    seen.page.evaluate(Path(AXE).read_text())
    found = seen.page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    serious = [
        (each["id"], each["impact"], [node["html"][:160] for node in each["nodes"]][:5])
        for each in found
        if each["impact"] in ("serious", "critical")
    ]
    assert not serious, serious


def test_without_motion_for_who_wants_none(cluster: Cluster, visit: Visiting) -> None:
    seen = visit(cluster.url("n1"), reduced_motion="reduce")
    expect(seen.member("n1")).to_be_visible()
    durations = seen.page.evaluate(
        """[...document.querySelectorAll("*")].map(
            (each) => `${getComputedStyle(each).transitionDuration} ${getComputedStyle(each).animationName}`)"""
    )
    assert set(durations) == {"0s none"}
