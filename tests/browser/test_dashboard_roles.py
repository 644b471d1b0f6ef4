"""Who may see and do what on the dashboard; what Prometheus is told, and whether it may ask."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("streamlit")

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

import hopaas_p2p
from dashboard_app import options, roles, sign_in
from dashboard_app.options import DashboardOptions
from dashboard_app.page_context import PageContext
from dashboard_app.replica_cache import ReplicaCache
from dashboard_app.routes import routes
from dashboard_app.views.metrics import exposition
from hopaas_p2p import access
from hopaas_p2p.analysis.table import TrialTable
from hopaas_p2p.errors import StoreUnreachable
from tests.support.dashboard_pages import listing_of
from tests.support.dashboard_studies import FAIL, Scribe


@pytest.fixture(autouse=True)
def _anew() -> Iterator[None]:
    roles.grants.clear()
    yield
    options.use(DashboardOptions())


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[ReplicaCache]:
    scribe = Scribe()
    scribe.trial("a", 1.0)
    scribe.put_into(str(tmp_path / "store"))
    cache = ReplicaCache(str(tmp_path / "store"), threaded=False)
    yield cache
    cache.close()


# --- roles ---


def test_without_sign_in_everybody_is_whom_the_server_is(cache: ReplicaCache) -> None:
    page = PageContext(cache, DashboardOptions(actions=True), listing_of(cache, "study"))
    assert (page.role(), page.may_act, page.may_steer, page.may_administer) == ("owner", True, True, True)
    page = PageContext(cache, DashboardOptions(), listing_of(cache, "study"))
    assert (page.may_act, page.may_steer, page.may_administer) == (False, False, False)


def test_with_sign_in_a_store_without_grants_has_the_owners_that_are_named(
    cache: ReplicaCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOPAAS_DASHBOARD_OWNERS", "ann, bob")
    monkeypatch.setenv("HOPAAS_DASHBOARD_ADMINS", "bob")
    opts = DashboardOptions(actions=True, auth="oidc")
    may = {
        name: (page.role(), page.may_act, page.may_steer, page.may_administer)
        for name in ("ann", "bob", "eve", "")
        for page in [PageContext(cache, opts, listing_of(cache, "study"), person=name)]
    }
    assert may == {
        "ann": ("owner", True, True, False),
        "bob": ("owner", True, True, True),
        "eve": ("viewer", False, False, False),
        "": ("none", False, False, False),
    }
    assert PageContext(cache, opts, person="").studies() == []


def test_the_name_of_a_person_is_the_claim_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    claims = {"sub": "u-17", "preferred_username": "ann", "email": "ann@example.org"}
    assert (sign_in.person(claims), sign_in.signature("u-17")) == ("u-17", "u-17")
    monkeypatch.setenv("HOPAAS_OIDC_CLAIM", "email")
    assert sign_in.person(claims) == "ann@example.org"
    assert sign_in.signature("ann@example.org") == "email:ann@example.org"  # others may be given it one day
    assert sign_in.shown("ann@example.org") == "ann@example.org (email)"
    assert sign_in.person({}) == sign_in.person({"email": ["ann@example.org"]}) == ""


def test_on_postgres_grants_decide_who_sees_what(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("shared", "secret"):
        hopaas_p2p.open_study(postgres_url, name).close()
    for user, role in (("vic", "viewer"), ("wanda", "worker"), ("olga", "owner")):
        access.add_user(postgres_url, user)
        access.grant(postgres_url, "shared", user, role)
    cache = ReplicaCache(postgres_url, threaded=False)
    opts = DashboardOptions(actions=True, auth="oidc")
    try:
        for user, acts, steers in (("vic", False, False), ("wanda", True, False), ("olga", True, True)):
            page = PageContext(cache, opts, listing_of(cache, "shared"), person=user)
            assert [one.name for one in page.studies()] == ["shared"]
            assert (page.may_act, page.may_steer) == (acts, steers)
        assert PageContext(cache, opts, person="nobody").studies() == []
        access.revoke(postgres_url, "shared", "olga")
        roles.grants.clear()  # as after twenty seconds
        assert PageContext(cache, opts, person="olga").studies() == []

        def away(*_args: object, **_more: object) -> None:
            raise StoreUnreachable("gone")

        monkeypatch.setattr(cache.store, "call", away)
        roles.grants.clear()
        assert roles.role_of(cache, listing_of(cache, "shared").uuid, opts, "vic") == "none"
    finally:
        cache.close()


# --- metrics ---


def get(cache: ReplicaCache, path: str, **headers: str) -> Response:
    """What the route of this path answers."""
    route = next(one for one in routes(lambda: cache) if one.path == path)  # type: ignore[attr-defined]
    said = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    answer: Response = route.endpoint(HttpRequest({"type": "http", "method": "GET", "headers": said}))  # type: ignore[attr-defined]
    return answer


def test_metrics_say_what_the_study_holds() -> None:
    scribe = Scribe(name='a "quoted"\nname\\')
    scribe.join("a", "north")
    scribe.trial("a", 3.0, seconds=60.0)
    scribe.trial("a", seconds=30.0, state=FAIL, reason="boom")
    scribe.start("a")
    text = exposition([("file:///s", scribe.name, scribe.state, TrialTable.of(scribe.state), 1.25)])
    labels = r'store="file:///s",study="a \"quoted\"\nname\\"'
    assert f'hopaas_trials{{{labels},state="complete"}} 1' in text
    assert f'hopaas_best_value{{{labels},objective="0",direction="minimize"}} 3' in text
    assert f'hopaas_running_peers{{{labels},site="north"}} 1' in text
    assert f"hopaas_compute_seconds_total{{{labels}}} 90" in text
    assert f"hopaas_read_age_seconds{{{labels}}} 1.25" in text
    assert "hopaas_budget_trials{" not in text
    for line in text.splitlines():
        assert line.startswith("hopaas_"), line


def test_metrics_want_a_token_where_people_sign_in(
    cache: ReplicaCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answers(**headers: str) -> int:
        return get(cache, "/metrics", **headers).status_code

    assert answers() == 200
    options.use(DashboardOptions(auth="oidc"))
    assert answers() == 401
    token = tmp_path / "token"
    token.write_text("s3cret\n")
    monkeypatch.setenv("HOPAAS_METRICS_TOKEN_FILE", str(token))
    assert answers() == 401
    assert answers(Authorization="Bearer wrong") == 401
    assert answers(Authorization="Bearer s3cret") == 200
    assert get(cache, "/healthz").status_code == 200


def test_health_is_not_well_while_the_store_is_away(cache: ReplicaCache, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_args: object) -> None:
        raise StoreUnreachable("gone")

    monkeypatch.setattr(cache, "_pull", away)
    answer = get(cache, "/healthz")
    assert (answer.status_code, json.loads(answer.body)) == (503, {"ok": False, "lag_seconds": None})
