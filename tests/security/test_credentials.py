"""One module reads credentials, and hands each out only for a host that its user named."""

from __future__ import annotations

import ast
import http.server
import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

import hopaas_p2p
from hopaas_p2p import spool
from hopaas_p2p.errors import ConfigurationError, HopaasError
from hopaas_p2p.joining import membership, ways
from hopaas_p2p.joining.invitation import Invitation
from hopaas_p2p.open import open_store, servers_of
from hopaas_p2p.ports.ticket import Ticket, carry, ending, keep
from hopaas_p2p.runtime import credentials
from hopaas_p2p.runtime.settings import Secret
from hopaas_p2p.stores.postgres.connect import PostgresAddress
from hopaas_p2p.stores.s3.store import S3Store
from tests.support.processes import CLI, ROOT, SPACE, cli, environment
from tests.support.strangers import Stranger, stranger

OWN = "ann.0123abcd:" + "k" * 43
GUEST = "guest-s-123456-worker.0a1b2c3d:" + "g" * 43
SESSION = "session-token-of-ann"
IDENTITY = "identity-token-of-ann"
AWS = {"AWS_ACCESS_KEY_ID": "AKIAANN", "AWS_SECRET_ACCESS_KEY": "s" * 40, "AWS_SESSION_TOKEN": SESSION}
READ_HERE = {
    "HOPAAS_TOKEN",
    "HOPAAS_TOKEN_FILE",
    "HOPAAS_WEBHOOK",
    "HOPAAS_METRICS_TOKEN_FILE",
    "HOPAAS_DASHBOARD_KEY_FILE",
    "HOPAAS_OIDC_FILE",
    "PGPASSWORD",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "WANDB_API_KEY",
    "NETRC",
    "~/.netrc",
    "~/.pgpass",
    ".aws",
}


# --- one module --------------------------------------------------------------------------------------------------


def _reads(path: Path) -> Iterator[str]:
    """The credentials that a module names by themselves, as one does to read them, and not in a message."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and node.value in READ_HERE:
            yield node.value
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module]
            yield from {"netrc", "keyring"} & set(modules)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "variable" and node.args:
            word = getattr(node.args[0], "value", "")
            yield from {"token", "token_file", "webhook", "webhook_file"} & {word}
        if isinstance(node, ast.JoinedStr) and len(node.values) > 1 and path.name != "settings.py":
            start = getattr(node.values[0], "value", "")
            yield from {"HOPAAS_", "AWS_", "PG", "WANDB_", "MLFLOW_"} & {start}


def test_no_other_module_reads_a_credential() -> None:
    found = {
        str(path.relative_to(ROOT)): sorted(set(_reads(path)))
        for package in ("hopaas_p2p", "dashboard_app")
        for path in (ROOT / package).rglob("*.py")
    }
    reading = {file: names for file, names in found.items() if names}
    assert set(reading) == {"hopaas_p2p/runtime/credentials.py"}, reading
    assert READ_HERE - set(reading["hopaas_p2p/runtime/credentials.py"]) == {
        "MLFLOW_TRACKING_PASSWORD",  # read by MLflow's own client, and by nothing of ours
        "MLFLOW_TRACKING_TOKEN",
        "WANDB_API_KEY",
        "~/.pgpass",
    }


# --- strangers' buckets --------------------------------------------------------------------------------------------


class Bucket:
    """An S3 server of a stranger's, on loopback, that notes all it is told."""

    def __init__(self, *, leads_to: str = "") -> None:
        self.heard: list[str] = []
        heard = self.heard

        class Handler(http.server.BaseHTTPRequestHandler):
            def _answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode("latin-1")
                heard.append(f"{self.requestline}\n{self.headers}\n{body}")
                self.send_response(307 if leads_to else 403)
                self.send_header("Location", leads_to)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _answer  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.place = f"127.0.0.1:{self._server.server_port}"
        self.url = f"s3://bucket-1/x?endpoint=http://{self.place}&region=us-east-1"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def bucket() -> Iterator[Bucket]:
    made = Bucket()
    yield made
    made.close()


@pytest.fixture
def evil() -> Iterator[Stranger]:
    with stranger() as listening:
        yield listening


@pytest.fixture(autouse=True)
def ann(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Her environment: a token, a session at Amazon's, an identity token. A process that joins changes it."""
    before = dict(os.environ)
    for name in before:
        if name.startswith(("AWS_", "HOPAAS_", "PG")) and not name.startswith("HOPAAS_TEST"):
            monkeypatch.delenv(name)
    (tmp_path / "own.token").write_text(OWN)
    (tmp_path / "identity").write_text(IDENTITY)
    hers = {
        **AWS,
        "HOPAAS_TOKEN_FILE": str(tmp_path / "own.token"),
        "AWS_WEB_IDENTITY_TOKEN_FILE": str(tmp_path / "identity"),
        "AWS_EC2_METADATA_DISABLED": "true",
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
        "XDG_STATE_HOME": str(tmp_path / "state"),
    }
    for name, value in hers.items():
        monkeypatch.setenv(name, value)
    for name in ("HOPAAS_JOINED", "HOPAAS_CA_FILE", "HOPAAS_SITE", "HOPAAS_STORE", "HOPAAS_STUDY"):
        monkeypatch.setenv(name, "")  # so that what the test sets is undone
    return tmp_path


def invitation(store: str, *, token: bool = True) -> Invitation:
    return Invitation(store, "s", Secret(GUEST) if token else None, int(time.time()) + 86400)


def as_ann(*words: str, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """A command of hers."""
    hers = {name: os.environ[name] for name in os.environ if name.startswith(("HOPAAS_TOKEN", "AWS_", "XDG_"))}
    return cli(*words, check=False, cwd=cwd, **{**hers, **more})


@pytest.mark.parametrize("identity", [False, True], ids=["session", "identity"])
@pytest.mark.parametrize(
    "words", ["study list", "trial artifact put file --study s", "complete", "worker --study s -- false"]
)
def test_a_strangers_bucket_in_a_clone_gets_nothing(ann: Path, bucket: Bucket, words: str, identity: bool) -> None:
    kind = "artifacts" if "artifact" in words else "store"
    (ann / "hopaas.toml").write_text(f'{kind} = "{bucket.url}"\n' + ('store = "./mine"' if kind == "artifacts" else ""))
    ann.chmod(0o755)
    hopaas_p2p.open_study(ann / "mine", "s", space=SPACE).close()
    (ann / "file").touch()
    less = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""} if identity else {}
    completing = {"_HOPAAS_P2P_COMPLETE": "bash_complete", "COMP_WORDS": "hopaas-p2p study show ", "COMP_CWORD": "3"}
    if words == "complete":
        as_ann(cwd=ann, **completing, **less)
    else:
        assert "hopaas-p2p config trust" in as_ann(*words.split(), cwd=ann, **less).stderr
    assert bucket.heard == []


def test_a_strangers_bucket_in_a_ticket_gets_nothing(
    ann: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticket = Ticket(bucket.url, "s", 0, "owner", 1, "uuid")
    with pytest.raises(ConfigurationError, match="a host that you have not named"), carry(ticket):
        pass
    monkeypatch.setenv("HOPAAS_STORE", bucket.url)
    with pytest.raises(HopaasError), carry(ticket, patience=0.1):
        pass
    assert bucket.heard, "she has named it now"


def test_a_bucket_that_an_invitation_names_gets_what_its_user_says_it_may(
    ann: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = membership.accept(invitation(bucket.url, token=False))
    ways.enter(kept)
    for _ in range(2):
        store = open_store(kept.store, create=False)
        with pytest.raises(ConfigurationError, match=rf"the study joined as s would send your .*{bucket.place}"):
            store.catalog().exchange(None, 0)
        store.close()
        monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)  # an identity token is left
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY", raising=False)
    assert bucket.heard == []
    monkeypatch.setenv("HOPAAS_TOKEN_HOST", "127.0.0.1")
    store = open_store(kept.store, create=False)
    with pytest.raises(HopaasError):
        store.catalog().exchange(None, 0)
    store.close()
    assert IDENTITY in bucket.heard[0]


def test_no_job_takes_a_bucket_of_an_invitation_for_one_of_its_users(ann: Path, bucket: Bucket) -> None:
    """A pod is told the store in a variable, and may have an identity of its own."""
    membership.accept(invitation(bucket.url, token=False))
    words = ["submit", "kubernetes", "--image", "me/train:1", "--dry-run", "--", "true"]
    assert "a host that you have not named" in as_ann(*words, cwd=ann).stderr
    assert not (ann / "hopaas-jobs").exists()
    assert as_ann(*words, cwd=ann, HOPAAS_TOKEN_HOST=bucket.place).returncode == 0


@pytest.mark.parametrize("url", ["postgresql:///d?host=/tmp/evil", "postgresql://db.example.org/d?host=/tmp/evil"])
def test_a_ticket_to_somebodys_socket_is_refused(ann: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOPAAS_STORE", "postgresql://db.example.org/d")
    ticket = Ticket(url, "s", 0, "owner", 1, "uuid")
    with pytest.raises(ConfigurationError, match="would send your token to /tmp/evil"), carry(ticket):
        pass


@pytest.mark.parametrize(
    ("host", "is_amazons"),
    [
        ("s3.eu-central-1.amazonaws.com", True),
        ("s3.amazonaws.com", True),
        ("s3.dualstack.us-east-1.amazonaws.com", True),
        ("ec2-1-2-3-4.eu-central-1.compute.amazonaws.com", False),
        ("abc.execute-api.eu-central-1.amazonaws.com", False),
        ("s3.eu-central-1.amazonaws.com.evil.example.org", False),
    ],
)
def test_keys_of_amazons_go_to_amazon_whoever_names_its_bucket(ann: Path, host: str, is_amazons: bool) -> None:
    url = f"s3://bucket-1/x?endpoint=https://{host}&region=us-east-1"
    ways.enter(membership.accept(invitation(url, token=False)))
    if is_amazons:
        found = credentials.access_key([(host, 443)])
        assert found is not None
        assert found[2] == SESSION
    else:
        with pytest.raises(ConfigurationError, match="a host that you have not named"):
            credentials.access_key([(host, 443)])


def test_a_bucket_that_sends_a_request_on_sends_no_session_token_along(ann: Path, bucket: Bucket) -> None:
    other = Bucket(leads_to=f"http://{bucket.place}/")
    try:
        signed = S3Store(other.url, create=False).objects
        with pytest.raises(HopaasError):
            signed.get("k", limit=9)
        with pytest.raises(HopaasError):
            signed.download("k", ann / "file")
        assert any(SESSION in said for said in other.heard)
        assert bucket.heard == []
    finally:
        other.close()


# --- joined studies ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["file", "variable"])
@pytest.mark.parametrize(
    "words", ["study list", "study show s", "watch s --once", "peers list --study s", "doctor", "trial ask --study s"]
)
def test_a_joined_studys_host_hears_of_the_token_that_came_with_it_only(
    ann: Path, evil: Stranger, words: str, by: str
) -> None:
    """The login is what tells the two tokens apart: the stranger asks for the password and is told none."""
    membership.accept(invitation(f"postgresql://127.0.0.1:{evil.port}/d"))
    own = {"HOPAAS_TOKEN_FILE": "", "HOPAAS_TOKEN": OWN} if by == "variable" else {}
    as_ann(*words.split(), cwd=ann, **own)
    assert evil.visits
    assert set(evil.users) == {"guest-s-123456-worker.0a1b2c3d"}
    assert evil.heard == b""


def test_nor_does_a_ticket_or_the_spool_lead_ones_own_token_there(ann: Path, evil: Stranger) -> None:
    """Neither says that it comes from a study that was joined; a second one is, so that none counts by itself."""
    store = f"postgresql://127.0.0.1:{evil.port}/d"
    membership.accept(invitation(store))
    membership.accept(replace(invitation("https://gw.example.org/d"), study="t"))
    ticket = Ticket(store, "s", 0, "owner", 1, "0" * 32, credentials.seal(store, servers_of(store)))
    for words in (["trial", "tell", "0.5", "--ticket", str(ticket)], ["admin", "spool", "send"]):
        before = evil.visits
        as_ann(*words, cwd=ann)
        assert evil.visits > before
    assert set(evil.users) == {"guest-s-123456-worker.0a1b2c3d"}


def test_nor_after_the_study_was_left(ann: Path, evil: Stranger) -> None:
    store = f"postgresql://127.0.0.1:{evil.port}/d"
    ways.enter(membership.accept(invitation(store)))
    address = PostgresAddress(store)  # of a process that goes on
    ticket = Ticket(store, "s", 0, "owner", 1, "0" * 32, credentials.seal(store, servers_of(store)))
    assert ticket.seal == "", "elsewhere nothing says that the study was joined"
    keep(ticket, ending(ticket, [0.5]), store)
    membership.forget("s")
    for words in (["trial", "tell", "0.5", "--ticket", str(ticket)], ["admin", "spool", "send"]):
        done = as_ann(*words, cwd=ann, HOPAAS_JOINED="")
        assert done.returncode == 78
        assert "127.0.0.1 is known here only through a study that you have left" in done.stderr + done.stdout
    ways.enter(membership.accept(invitation("https://gw.example.org/d")))
    with pytest.raises(ConfigurationError, match="a study that you have left"):
        address.credentials()
    with pytest.raises(ConfigurationError, match="a study that you have left"):
        credentials.access_key(servers_of(store), {**os.environ, **AWS})
    assert evil.visits == 0
    credentials.named(store)
    assert address.credentials()[0] == "ann.0123abcd"


def test_a_user_of_a_server_who_is_a_guest_there_too_is_whom_she_says(
    ann: Path, evil: Stranger, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = f"postgresql://127.0.0.1:{evil.port}/d"
    membership.accept(invitation(store))
    as_ann("study", "list", "--store", store, cwd=ann)
    as_ann("study", "list", cwd=ann, HOPAAS_STORE=store)
    assert set(evil.users) == {"ann.0123abcd"}
    with pytest.raises(ConfigurationError, match="asks for the secret without SCRAM"):
        hopaas_p2p.open_study(store, "s", create=False)
    assert set(evil.users) == {"ann.0123abcd"}
    as_ann("study", "list", cwd=ann)
    assert evil.users[-1] == "guest-s-123456-worker.0a1b2c3d"
    membership.accept(replace(invitation(store), study="t"))
    credentials._named.clear()
    with pytest.raises(ConfigurationError, match="set HOPAAS_JOINED to one of: s, t"):
        credentials.login(None, [("127.0.0.1", evil.port)])


def test_of_a_joined_study_whose_token_is_not_for_the_user_in_its_url_libpq_is_not_asked(
    ann: Path, evil: Stranger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPASSWORD", "sesame")
    kept = membership.accept(invitation(f"postgresql://ann@127.0.0.1:{evil.port}/d"))
    ways.enter(kept)
    store = open_store(kept.store)
    with pytest.raises(ConfigurationError, match="the study joined as s has no token for ann"):
        store.catalog().exchange(None, 0)
    store.close()
    assert evil.visits == 0


def test_where_the_joined_study_is_not_known_no_token_goes_out(
    ann: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a worker of an executor, on a node that does not see the user's home."""
    ways.enter(membership.accept(invitation("https://gw.example.org/d")))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "elsewhere"))
    with pytest.raises(ConfigurationError, match="no study is joined here as 's'"):
        credentials.login(None, [("gw.example.org", 443)])


def test_the_token_of_a_joined_study_goes_to_no_other_host(ann: Path, evil: Stranger) -> None:
    ways.enter(membership.accept(invitation("https://gw.example.org/d")))
    name, _, password = OWN.partition(":")
    assert credentials.login(None, [("127.0.0.1", evil.port)]) == (name, Secret(password))
    with pytest.raises(ConfigurationError, match=r"not at 127\.0\.0\.1:"):
        credentials.login(None, [("gw.example.org", 443), ("127.0.0.1", evil.port)])


def test_where_a_joined_studys_authority_vouches_for_ones_own_server_no_token_goes_there(ann: Path) -> None:
    kept = membership.accept(replace(invitation("https://gw.example.org/d"), authority="-- a certificate --"))
    ways.enter(kept)
    assert credentials.login(None, [("gw.example.org", 443)])[0] == "guest-s-123456-worker.0a1b2c3d"
    with pytest.raises(ConfigurationError, match=r"would vouch for own.example.org, too"):
        credentials.login(None, [("own.example.org", 443)])
    with pytest.raises(ConfigurationError, match=r"would vouch for s3.example.org, too"):
        credentials.access_key([("s3.example.org", 443)])


def test_a_store_that_is_named_beside_a_joined_study_gets_ones_own_token(ann: Path, evil: Stranger) -> None:
    membership.accept(invitation("https://gw.example.org/d"))
    done = as_ann("study", "list", "--store", f"postgresql://127.0.0.1:{evil.port}/d", cwd=ann, HOPAAS_JOINED="s")
    assert "asks for the secret without SCRAM" in done.stderr
    assert evil.users == ["ann.0123abcd"]


def test_results_in_a_file_from_another_machine_take_no_token_to_where_it_says(ann: Path, evil: Stranger) -> None:
    store = f"postgresql://127.0.0.1:{evil.port}/d"
    ticket = Ticket(store, "s", 0, "owner", 1, "0" * 32)
    keep(ticket, ending(ticket, [0.5]), store)
    assert len(list(spool.waiting())) == 1
    assert as_ann("admin", "spool", "export", "results", cwd=ann).returncode == 0
    done = as_ann("admin", "spool", "send", "results", cwd=ann)
    assert done.returncode == 78
    assert f"the file results would send your token to 127.0.0.1:{evil.port}" in done.stderr
    assert evil.visits == 0
    named = as_ann("admin", "spool", "send", "results", "--store", store, cwd=ann)
    assert "asks for the secret without SCRAM" in named.stdout + named.stderr


# --- what others get of the environment --------------------------------------------------------------------------

HERS = {
    "HOPAAS_TOKEN": OWN,
    "HOPAAS_WEBHOOK": "https://chat.example.org/hook",
    "PGPASSWORD": "pg-password",
    "AWS_ACCESS_KEY_ID": "AKIAANN",
    "AWS_SECRET_ACCESS_KEY": "/looks/like/a/path",
    "AWS_SESSION_TOKEN": SESSION,
    "AWS_CONTAINER_AUTHORIZATION_TOKEN": "container-token",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://127.0.0.1:9/keys?x",
    "WANDB_API_KEY": "wandb-key",
    "MLFLOW_TRACKING_PASSWORD": "mlflow-password",
    "MLFLOW_TRACKING_TOKEN": "mlflow-token",
    "HF_TOKEN": "hf-token",
    "OPENAI_API_KEY": "openai-key",
    "DATABASE_URL": "mysql://ann:db-password@db/x",
    "HTTPS_PROXY": "http://ann:proxy-password@127.0.0.1:9",
}
NEEDED = {
    "LC_ALL": "C.UTF-8",
    "TZ": "UTC",
    "OMP_NUM_THREADS": "3",
    "CUDA_VISIBLE_DEVICES": "0,1",
    "VIRTUAL_ENV": "/venv",
    "CONDA_PREFIX": "/conda",
    "LD_LIBRARY_PATH": "/lib",
    "LOADEDMODULES": "gcc/13",
    "SLURM_CONF": "/etc/slurm.conf",
    "HOPAAS_PATIENCE": "20",
    "HOPAAS_TOKEN_HOST": "db.example.org",
}


def _dumping(folder: Path, *names: str) -> dict[str, str]:
    """PATH with programs of these names first, each of which writes its environment down."""
    folder.mkdir()
    for name in names:
        (folder / name).write_text(f"#!/bin/sh\nenv > {folder}/environment\necho 7\n")
        (folder / name).chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


@pytest.mark.parametrize("system", ["slurm", "condor", "kubernetes"])
def test_a_batch_system_gets_what_is_named_and_nothing_else(ann: Path, system: str) -> None:
    hopaas_p2p.open_study(ann / "store", "s", space=SPACE).close()
    path = _dumping(ann / "bin", "sbatch", "condor_submit", "kubectl")
    hers = {**HERS, **NEEDED, "MY_OWN": "mine", "OTHERS": "theirs", "HOPAAS_TOKEN": "", **path}
    words = ["submit", system, "--store", "store", "--study", "s", "--image", "me/train:1", "--pass", "MY_OWN"]
    done = as_ann(*words, "--", "true", "{lr}", cwd=ann, **hers)
    assert done.returncode == 0, done.stderr
    written = (ann / "bin/environment").read_text()
    jobs = "".join(path.read_text() for path in (ann / "hopaas-jobs").iterdir())
    for secret in HERS.values():
        assert secret not in written + jobs
    assert "theirs" not in written + jobs
    assert "mine" in written
    assert "MY_OWN" in jobs
    for name, value in NEEDED.items():
        assert f"{name}={value}\n" in written


def test_a_credential_that_is_named_goes_by_the_environment_and_into_no_script(ann: Path) -> None:
    hopaas_p2p.open_study(ann / "store", "s", space=SPACE).close()
    path = _dumping(ann / "bin", "sbatch", "condor_submit")
    words = ["--store", "store", "--study", "s", "--pass", "WANDB_API_KEY", "--", "true", "{lr}"]
    done = as_ann("submit", "slurm", *words, cwd=ann, WANDB_API_KEY="wandb-key", **path)
    assert done.returncode == 0, done.stderr
    assert "WANDB_API_KEY=wandb-key" in (ann / "bin/environment").read_text()
    (script,) = (ann / "hopaas-jobs").iterdir()
    assert "wandb-key" not in script.read_text()
    assert "--pass WANDB_API_KEY" in script.read_text()
    refused = as_ann("submit", "condor", *words, cwd=ann, WANDB_API_KEY="wandb-key", **path)
    assert refused.returncode == 2
    assert "would keep this credential in a file" in refused.stderr


def test_a_module_that_lies_where_a_job_runs_is_not_taken_for_one_of_ours(ann: Path) -> None:
    hopaas_p2p.open_study(ann / "store", "s", space=SPACE).close()
    words = ["submit", "slurm", "--dry-run", "--store", "store", "--study", "s", "--max-trials", "1", "--"]
    assert as_ann(*words, "sh", "-c", "echo '{\"value\": 1}'; : {lr}", cwd=ann).returncode == 0
    (ann / "click.py").write_text("open('planted', 'w').close()\n")
    (script,) = (ann / "hopaas-jobs").glob("*.sh")
    env = environment(HOME=str(ann))
    done = subprocess.run([script], cwd=ann, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert not (ann / "planted").exists()


def test_a_training_command_gets_the_environment_without_the_credentials_that_are_not_named(ann: Path) -> None:
    hopaas_p2p.open_study(ann / "store", "s", space=SPACE).close()
    code = "import json,os,sys; json.dump(dict(os.environ), open('seen', 'w')); print('{\"value\": 1}')"
    words = ["worker", "--store", "store", "--study", "s", "--max-trials", "1", "--pass", "WANDB_API_KEY"]
    env = environment(**{**HERS, **NEEDED, "MY_OWN": "mine", "GOOGLE_APPLICATION_CREDENTIALS": str(ann / "own.token")})
    done = subprocess.run(
        [*CLI, *words, "--", os.sys.executable, "-c", code, "{lr}"],
        cwd=ann,
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads((ann / "seen").read_text())
    wanted = {**NEEDED, "MY_OWN": "mine", "WANDB_API_KEY": "wandb-key"}
    assert {name: seen.get(name) for name in wanted} == wanted
    assert seen["GOOGLE_APPLICATION_CREDENTIALS"] == str(ann / "own.token"), "a path is no secret"
    assert not (HERS.keys() - {"WANDB_API_KEY"}) & seen.keys()
    assert "--pass HF_TOKEN" in done.stderr, "it is said how to hand over what was left out"


@pytest.mark.parametrize(
    ("name", "value", "secret"),
    [
        ("TOKENIZERS_PARALLELISM", "false", False),
        ("SSH_AUTH_SOCK", "/tmp/agent", False),
        ("PWD", "/home/ann", False),
        ("HOPAAS_STORE", "postgresql://ann@db.example.org/d", False),
        ("HOPAAS_TOKEN_FILE", "ann.token", False),
        ("GITHUB_TOKEN", "x", True),
        ("db_password", "x", True),
        ("PIP_INDEX_URL", "https://ann@pypi.example.org/simple", True),
        ("SIGNING_KEY", "x", True),
        ("AUTHORIZATION", "x", True),
        ("BW_SESSION", "x", True),
        ("DBUS_SESSION_BUS_ADDRESS", "unix:path=/run/user/1000/bus", False),
        ("DEPLOY", "-----BEGIN OPENSSH PRIVATE KEY-----\nb3Bl", True),
        ("MINE", f"ghp_{'a1' * 18}", True),
        ("MINE", f"glpat-{'a1' * 10}", True),
        ("MINE", f"sk-proj-{'a1' * 12}", True),
        ("RUN_NAME", "sk-learn-with-a-long-name-of-words", False),
        ("MINE", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl", True),
        ("MINE", "https://hooks.slack.com/services/T0/B0/x", True),
    ],
)
def test_a_credential_is_known_by_its_name_or_by_the_login_in_it(name: str, value: str, secret: bool) -> None:
    assert credentials.is_secret(name, value) == secret
