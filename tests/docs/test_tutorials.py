"""Tutorials and how-tos, run as a reader would, on a real Postgres, a real bucket, a real MLflow."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

import hopaas_p2p
from tests.support.connect_proxy import ConnectProxy
from tests.support.pages import run_page
from tests.support.postgres import Server, find_binaries
from tests.support.postgres_fixtures import OWNER, missing
from tests.support.served import HOST, Centre


def test_three_clusters_share_one_study(centre: Centre, tmp_path: Path) -> None:
    gateway = centre.serve()
    home = tmp_path / "home"
    home.mkdir()
    env = {
        "HOPAAS_CA_FILE": str(centre.authority.file),
        "NO_PROXY": "",
        "PGPASSFILE": str(_passwords(centre.server, home)),
    }
    with ConnectProxy("user", "password") as proxy:
        said = run_page(
            "docs/clusters.md",
            home,
            stands_in={
                "owner@db.example.org/tuning": f"{OWNER}@127.0.0.1:{centre.server.port}/store",
                "db.example.org/tuning": f"127.0.0.1:{centre.server.port}/store",
                "gateway.example.org/tuning": f"{HOST}:{gateway.port}/store",
                "proxy.site.example:3128": f"127.0.0.1:{proxy.port}",
            },
            env=env,
        )
        assert proxy.tunnels > 0
    assert [site for site in ("north", "south", "east") if site not in said] == []
    assert "9 of 9" in said or "9/9" in said, said


def _passwords(server: Server, directory: Path) -> Path:
    path = directory / "passwords"
    path.write_text(f"*:*:*:{OWNER}:{server.password}\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def own_server() -> Iterator[Server]:
    """A server of the page's own: it makes users, who are a server's."""
    found = find_binaries()
    if not found:
        missing("a Postgres server")
    server = Server(found[max(found)]).start()
    yield server
    server.stop()


def _on(server: Server, page: str, directory: Path) -> str:
    def run(text: str) -> None:
        for statement in text.strip().split("\n"):
            server.execute(statement)

    return run_page(
        page,
        directory,
        stands_in={"db.example.org/tuning": f"127.0.0.1:{server.port}/tuning", "db.example.org": "127.0.0.1"},
        sql=run,
    )


def test_a_group_works_on_postgres(own_server: Server, tmp_path: Path) -> None:
    said = _on(own_server, "docs/postgres.md", tmp_path)
    assert "shared" in said
    assert "secret" not in said


def test_the_commands_of_the_page_on_concepts_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOPAAS_SITE", "north")
    store = str(tmp_path / "store")
    study = hopaas_p2p.open_study(
        store, "demo", space={"x": hopaas_p2p.Float(0, 1)}, policy=hopaas_p2p.StudyPolicy(lease_ttl=300)
    )
    trials = [study.ask() for _ in range(18)]

    run_page("docs/concepts.md", tmp_path, env={"HOPAAS_STORE": store, "XDG_STATE_HOME": str(tmp_path / "state")})

    assert trials[17].stop_requested == "diverged"
    assert study.state.draining == {}
    study.close()


def test_trackers_and_the_registry(mlflow_server: str, tmp_path: Path) -> None:
    said = run_page("docs/trackers.md", tmp_path, stands_in={"http://mlflow.example.org:5000": mlflow_server})
    assert "Exported 6 trials to mlflow" in said
    assert "Exported 6 trials to wandb" in said
    assert "models:/detector/1" in said


def test_the_page_on_search(tmp_path: Path) -> None:
    run_page("docs/search.md", tmp_path)


def test_training_libraries(tmp_path: Path) -> None:
    for module in ("torch", "keras"):
        if importlib.util.find_spec(module) is None:
            missing(f"{module} (pip install 'hopaas-p2p[integrations]')")
    run_page("docs/training.md", tmp_path, env={"OMP_NUM_THREADS": "1"}, seconds=300)
