"""The page of nodes that ask for tokens, over TLS: signing in, what a right shows and hides, and how it ends."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator

import pytest

from tests.certificates import Authority
from tests.cluster import Cluster, wait_until
from tests.console.browser import Visit, expect

FIRST = "the-first-token-of-this-cluster"
Visiting = Callable[..., Visit]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("secured")
    authority = Authority(folder / "tls")
    for name in ("n1", "n2", "n3"):
        authority.sign(name)
    token = folder / "token"
    token.write_text(FIRST)
    token.chmod(0o600)
    args = (
        *("--tls-cert", f"{authority.folder}/{{node}}.pem", "--tls-key", f"{authority.folder}/{{node}}-key.pem"),
        *("--token-file", str(token)),
    )
    with Cluster(folder / "nodes", args=args, tls=authority.client(), token=FIRST) as made:
        made.start(30.0)
        for key in ("app/one", "app/two", "shop/one", "secret/one"):
            made.put(key, b"old")
        yield made


@pytest.fixture
def visiting(cluster: Cluster, visit: Visiting) -> Callable[[str], Visit]:
    return lambda name: visit(cluster.url(name), ignore_https_errors=True)


def made(cluster: Cluster, name: str, role: str, *prefixes: str) -> str:
    """A new token's secret."""
    body = json.dumps({"name": name, "role": role, "prefixes": list(prefixes)}).encode()
    answer = cluster.request(cluster.leader(), "POST", "/admin/api/v1/tokens", body)
    assert answer.status == 200, answer.body
    secret = str(answer.json()["token"])
    bearer = {"Authorization": f"Bearer {secret}"}
    for node in cluster.nodes:
        wait_until(
            lambda node=node: cluster.request(node, "GET", "/admin/api/v1/nodes", headers=bearer).status == 200, 5, name
        )
    return secret


def sign_in(seen: Visit, token: str) -> None:
    field = seen.page.get_by_label("Token", exact=True)
    expect(field).to_have_attribute("type", "password")
    field.fill(token)
    seen.button("Sign in").click()
    expect(seen.status).to_contain_text("leads in term")


def test_who_signs_in_sees_the_cluster_and_who_signs_out_does_not(
    cluster: Cluster, visiting: Callable[[str], Visit]
) -> None:
    seen = visiting("n1")
    page = seen.page
    expect(page.get_by_label("Token", exact=True)).to_be_focused()
    assert page.get_by_role("table").count() == 0
    seen.refusals = {401}
    page.get_by_label("Token", exact=True).fill("wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_have_text("This token is not valid, or not any more.")
    sign_in(seen, FIRST)
    expect(seen.member(cluster.leader())).to_contain_text("leader")
    cookies = seen.context.cookies()
    assert [(each["name"], each["httpOnly"], each["secure"], each["sameSite"]) for each in cookies] == [
        ("__Host-kvnode_session", True, True, "Strict")
    ]
    stored = page.evaluate("JSON.stringify([localStorage, sessionStorage, document.cookie, location.href])")
    assert FIRST not in stored
    page.reload()
    expect(seen.status).to_contain_text("leads in term")
    seen.button("Sign out").click()
    expect(page.get_by_label("Token", exact=True)).to_be_visible()
    assert page.get_by_role("table").count() == 0
    page.reload()
    expect(page.get_by_label("Token", exact=True)).to_be_visible()


def test_a_reader_is_shown_no_button_that_changes_anything(cluster: Cluster, visiting: Callable[[str], Visit]) -> None:
    seen = visiting("n2")
    sign_in(seen, made(cluster, "reader", "read"))
    seen.choose_key("app/one")
    expect(seen.value).to_have_value("old")
    expect(seen.value).to_have_attribute("readonly", "")
    for name in ("Transfer leadership", "Drain", "Undrain", "Remove", "Save", "Delete", "Create", "Revoke"):
        assert seen.button(name).count() == 0, name
    assert seen.page.get_by_role("region", name="Tokens").count() == 0


def test_a_writer_writes_and_administers_nothing(cluster: Cluster, visiting: Callable[[str], Visit]) -> None:
    seen = visiting("n3")
    sign_in(seen, made(cluster, "writer", "write"))
    seen.choose_key("app/two")
    expect(seen.value).to_have_value("old")
    seen.value.fill("new")
    seen.button("Save").click()
    expect(seen.page.get_by_text("Saved.", exact=True)).to_be_visible()
    assert cluster.get("app/two") == b"new"
    for name in ("Transfer leadership", "Drain", "Remove", "Create"):
        assert seen.button(name).count() == 0, name


def test_a_restricted_token_sees_nothing_outside_its_prefixes(
    cluster: Cluster, visiting: Callable[[str], Visit]
) -> None:
    for _ in range(5):
        cluster.get("secret/one")
        cluster.get("app/one")
    seen = visiting("n1")
    sign_in(seen, made(cluster, "app", "write", "app/"))
    expect(seen.prefix).to_have_value("app/")
    expect(seen.keys.get_by_role("button", name="app/one")).to_be_visible()
    expect(seen.page.get_by_role("img", name="Heat").locator("rect").first).to_be_visible()
    for prefix in ("", "s", "secret/", "secret/one", "shop/"):
        seen.prefix.fill(prefix)
        expect(seen.page.get_by_text("Your token reaches the keys under app/ alone.")).to_be_visible()
    seen.choose_key("app/one")
    expect(seen.value).to_have_value("old")
    seen.value.fill("mine")
    seen.button("Save").click()
    expect(seen.page.get_by_text("Saved.", exact=True)).to_be_visible()
    text = seen.page.evaluate("document.documentElement.outerHTML")
    assert "secret" not in text
    assert "shop/" not in text


def test_a_token_is_made_shown_once_used_and_revoked(cluster: Cluster, visiting: Callable[[str], Visit]) -> None:
    admin, guest = visiting("n1"), visiting("n2")
    sign_in(admin, FIRST)
    section = admin.page.get_by_role("region", name="Tokens")
    section.get_by_label("Name").fill("guest")
    section.get_by_label("Role").select_option("write")
    section.get_by_label("Only keys under").fill("shop/, app/")
    section.get_by_label("Days it lasts").fill("30")
    section.get_by_role("button", name="Create").click()
    shown = section.get_by_text(re.compile(r"^kvnode_[0-9a-f]{8}_"))
    secret = shown.inner_text()
    row = section.get_by_role("row").filter(has_text="guest")
    expect(row).to_contain_text("app/ shop/")
    section.get_by_role("button", name="Done").click()
    expect(shown).to_have_count(0)
    assert secret not in admin.page.evaluate("document.documentElement.outerHTML")
    sign_in(guest, secret)
    expect(guest.page.get_by_role("button", name="shop/", exact=True).first).to_be_visible()
    guest.refusals = {401}
    admin.refusals = {409}
    section.get_by_label("Name").fill("guest")
    section.get_by_role("button", name="Create").click()
    expect(section.get_by_role("alert")).to_contain_text("There is a token named 'guest' already")
    row.get_by_role("button", name="Revoke").click()
    admin.answer_yes()
    expect(row).to_have_count(0)
    expect(guest.page.get_by_label("Token", exact=True)).to_be_visible(timeout=5_000)
    assert guest.page.get_by_role("table").count() == 0
