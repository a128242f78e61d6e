"""The node that served the page is killed: the page says so, and goes on by itself."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest

from tests.balancer import Balancer, needs_haproxy
from tests.cluster import Cluster
from tests.console.browser import Visit, expect

FIRST = "the-first-token-of-this-cluster"
Visiting = Callable[..., Visit]
SigningIn = Callable[[str], Visit]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("away")
    token = folder / "token"
    token.write_text(FIRST)
    token.chmod(0o600)
    with Cluster(folder, args=("--token-file", str(token)), token=FIRST) as made:
        made.start(30.0)
        made.put("away/a", b"kept")
        yield made


@pytest.fixture
def balancer(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Balancer]:
    made = Balancer(tmp_path_factory.mktemp("balancer"), {name: node.http for name, node in cluster.nodes.items()})
    try:
        yield made.start()
    finally:
        made.close()


@pytest.fixture
def signed_in(visit: Visiting) -> SigningIn:
    """A page whose session goes on at every member and through the balancer: a cookie knows no port."""

    def open_page(url: str) -> Visit:
        seen = visit(url)
        seen.may_break = True
        seen.page.get_by_label("Token", exact=True).fill(FIRST)
        seen.button("Sign in").click()
        expect(seen.status).to_contain_text("leads in term")
        return seen

    return open_page


@pytest.mark.parametrize("is_leader", [True, False])
def test_the_page_goes_on_at_another_member(cluster: Cluster, signed_in: SigningIn, is_leader: bool) -> None:
    gone = cluster.leader() if is_leader else cluster.followers()[0]
    seen = signed_in(cluster.url(gone))
    seen.may_go_to([cluster.url(name) for name in cluster.nodes])
    expect(seen.status).to_contain_text("leads in term")
    seen.choose_key("away/a")
    expect(seen.value).to_have_value("kept")
    cluster.kill(gone)
    try:
        alert = seen.page.get_by_role("alert")
        expect(alert.filter(has_text=f"{gone} does not answer")).to_be_visible()
        seen.page.wait_for_url(lambda url: not url.startswith(cluster.url(gone)))
        expect(alert.filter(has_text=f"{gone} went away. This page goes on at")).to_be_visible()
        expect(seen.status).to_contain_text("leads in term")
        expect(seen.member(gone)).to_contain_text("unreachable")
        if is_leader:
            newest = seen.page.get_by_role("list", name="Timeline").get_by_role("listitem").first
            expect(newest).to_contain_text(re.compile(rf"leads in term.*{gone}.* without a leader", re.S))
        expect(seen.prefix).to_have_value("away/a")
        expect(seen.value).to_have_value("kept")
        assert "gone=" not in seen.page.url
        seen.button("Dismiss").click()
        expect(alert).to_have_count(0)
    finally:
        cluster.restart(gone, 30.0)
        cluster.wait_ready(30.0)
    expect(seen.member(gone)).to_contain_text(re.compile("follower|leader"))


def test_what_was_typed_is_not_left_behind(cluster: Cluster, signed_in: SigningIn) -> None:
    gone = cluster.followers()[0]
    seen = signed_in(cluster.url(gone))
    seen.choose_key("away/a")
    expect(seen.value).to_have_value("kept")
    seen.value.fill("half a sentence")
    cluster.kill(gone)
    try:
        stay = seen.page.get_by_role("alert").filter(has_text="went away")
        expect(stay).to_contain_text("What you have typed is kept here")
        expect(seen.value).to_have_value("half a sentence")
        expect(stay.get_by_role("link")).to_have_attribute("href", re.compile(r"^http://127\.0\.0\.1:\d+/admin/"))
    finally:
        cluster.restart(gone, 30.0)
        cluster.wait_ready(30.0)
    expect(seen.page.get_by_role("alert").filter(has_text="went away")).to_have_count(0)
    seen.button("Save").click()
    expect(seen.page.get_by_text("Saved.", exact=True)).to_be_visible()
    assert cluster.get("away/a") == b"half a sentence"
    cluster.put("away/a", b"kept")


@needs_haproxy
def test_behind_a_balancer_the_page_stays_where_it_is(
    cluster: Cluster, balancer: Balancer, signed_in: SigningIn
) -> None:
    leader = cluster.leader()
    balancer.settles_on(leader)
    seen = signed_in(balancer.url)
    expect(seen.status).to_contain_text(f"{leader} leads in term")
    seen.choose_key("away/a")
    cluster.kill(leader)
    try:
        expect(seen.member(leader)).to_contain_text("unreachable")
        expect(seen.status).to_contain_text(re.compile(f"(?!{leader})n[123] leads in term"))
        expect(seen.page.get_by_role("alert")).to_have_count(0)
        assert seen.page.url.startswith(f"{balancer.url}/admin/")
        seen.value.fill("through the balancer")
        seen.button("Save").click()
        expect(seen.page.get_by_text("Saved.", exact=True)).to_be_visible()
        assert cluster.get("away/a") == b"through the balancer"
    finally:
        cluster.restart(leader, 30.0)
        cluster.wait_ready(30.0)
    expect(seen.member(leader)).to_contain_text("follower")
    to = cluster.followers()[0]
    seen.member(cluster.leader()).get_by_role("button", name="Transfer leadership").click()
    seen.dialog.get_by_label("New leader").select_option(to)
    seen.answer_yes()
    expect(seen.status).to_contain_text(f"{to} leads in term")


@needs_haproxy
def test_without_any_node_the_page_asks_on(cluster: Cluster, balancer: Balancer, signed_in: SigningIn) -> None:
    seen = signed_in(balancer.url)
    expect(seen.status).to_contain_text("leads in term")
    for name in cluster.nodes:
        cluster.kill(name)
    try:
        expect(seen.page.get_by_role("alert")).to_contain_text("does not answer. Asking again every second")
        expect(seen.status).to_have_text("No leader")
    finally:
        for name in cluster.nodes:
            cluster.spawn(name)
        cluster.wait_ready(30.0)
    expect(seen.page.get_by_role("alert").filter(has_text="does not answer")).to_have_count(0)
    expect(seen.status).to_contain_text("leads in term")
