"""Who may see and do what on the dashboard; what Prometheus is told, and whether it may ask."""

from __future__ import annotations

import ast
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("streamlit")

from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from streamlit.runtime.media_file_manager import MediaFileManager

import hopaas_p2p
from dashboard_app import options, page_context, roles, sign_in
from dashboard_app.options import DashboardOptions
from dashboard_app.page_context import PageContext
from dashboard_app.pages import notes, steer, trials
from dashboard_app.replica_cache import ReplicaCache
from dashboard_app.routes import routes
from dashboard_app.views.metrics import exposition
from hopaas_p2p import access
from hopaas_p2p.analysis.table import TrialTable
from hopaas_p2p.errors import Denied, StoreUnreachable
from tests.support.dashboard_pages import calm, drawn, listing_of
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
    claims = {"sub": "u-17", "preferred_username": "ann", "email": "ann@example.org", "email_verified": True}
    assert (sign_in.person(claims), sign_in.signature("u-17")) == ("u-17", "u-17")
    monkeypatch.setenv("HOPAAS_OIDC_CLAIM", "email")
    assert sign_in.person(claims) == "ann@example.org"
    assert sign_in.signature("ann@example.org") == "email:ann@example.org"  # others may be given it one day
    assert sign_in.shown("ann@example.org") == "ann@example.org (email)"
    assert sign_in.person({}) == sign_in.person({"email": ["ann@example.org"], "email_verified": True}) == ""


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


# --- what outlives the run that drew it ---


@pytest.mark.parametrize(
    ("draw", "args", "label", "left"),
    [
        (steer._stop_study, (), "Stop it", "worker"),
        (steer._confirm_stop, (1, 1), "Ask it to end", "worker"),
        (steer._confirm_take, (1, 1), "Requeue", "worker"),
        (trials._confirm, ([0],), "Queue them", "viewer"),
        (trials._confirm, ([0],), "Queue them", "none"),
    ],
)
def test_an_open_dialog_changes_nothing_after_the_role_has_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, draw: Any, args: Any, label: str, left: str
) -> None:
    scribe = Scribe()
    scribe.trial("a", state=FAIL)
    scribe.start("a")
    scribe.put_into(str(tmp_path / "store"))
    monkeypatch.setattr(page_context, "role_of", lambda *_: "owner")
    with contextlib.closing(ReplicaCache(str(tmp_path / "store"), threaded=False)) as cache:
        page = PageContext(cache, DashboardOptions(actions=True, auth="oidc"), listing_of(cache, "study"), "ann")
        dialog = calm(drawn(draw, page, *args))
        monkeypatch.setattr(page_context, "role_of", lambda *_: left)

        next(one for one in dialog.button if one.label == label).click()

        assert ["sign in again" in one.value for one in calm(dialog).error] == [True]
    with contextlib.closing(hopaas_p2p.open_study(str(tmp_path / "store"), "study")) as study:
        assert study.state.lsn == scribe.state.lsn


@pytest.mark.filterwarnings("ignore:Series.values returning an ndarray")  # pyarrow asks pandas for it
@pytest.mark.parametrize("show", [trials.show, notes.show])
def test_a_file_is_not_made_after_the_role_has_gone_or_the_sign_in_has_expired(
    cache: ReplicaCache, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, show: Any
) -> None:
    (tmp_path / "model").write_text("secret")
    with contextlib.closing(hopaas_p2p.open_study(cache.url, "study")) as study:
        study.artifacts().put(tmp_path / "model")
    made, now, role = [], [0.0], ["viewer"]
    monkeypatch.setattr(MediaFileManager, "add_deferred", lambda _self, data, *_, **_more: made.append(data) or "id")
    monkeypatch.setattr(page_context, "time", SimpleNamespace(time=lambda: now[0]))
    monkeypatch.setattr(page_context, "role_of", lambda *_: role[0])
    calm(drawn(show, PageContext(cache, DashboardOptions(auth="oidc"), listing_of(cache, "study"), "vic", until=60.0)))
    (make,) = made
    assert make()

    for now[0], role[0] in ((1.0, "none"), (61.0, "viewer")):
        with pytest.raises(Denied, match="sign in again"):
            make()


def test_pages_leave_streamlit_nothing_to_run_later_that_does_not_ask_for_the_role_again() -> None:
    found: set[tuple[str, str]] = set()
    for path in Path(page_context.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            code = ast.unparse(node) if isinstance(node, ast.Attribute | ast.keyword) else ""
            later = code.endswith((".download_button", ".fragment", ".dialog")) or code.startswith("on_")
            if later or code.endswith(("cache.frame", "cache.study", "cache.storage")):
                found.add((path.name, code))
            if isinstance(node, ast.FunctionDef) and "st.dialog" in ast.unparse(node).partition("def ")[0]:
                first, *others = [ast.unparse(one.annotation or node) for one in node.args.args]
                assert first == "PageContext" and {*others} <= {"int", "list[int]"}, "a dialog reads the page's frame"
    assert found == {
        ("page_context.py", "self.cache.frame"),
        ("page_context.py", "self.cache.study"),
        ("page_context.py", "st.download_button"),
        ("page_context.py", "on_click='ignore'"),
        ("redraw.py", "st.fragment"),  # draws `page.frame`, or of `page.studies()`
        ("redraw.py", "on_moved_change=lambda: None"),
        ("steer.py", "st.dialog"),
        ("trials.py", "st.dialog"),
        ("studies.py", "page.cache.frame"),  # of `page.studies()`
        ("routes.py", "cache.frame"),
        ("app.py", "on_click=st.login"),
        ("app.py", "on_click=st.logout"),
        ("server.py", "on_script_error=lambda error: LOG.error('a page failed', exc_info=error)"),
    }


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
