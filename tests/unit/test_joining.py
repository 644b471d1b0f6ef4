"""Invitations, what a site keeps of them, and what batch scripts hold."""

from __future__ import annotations

import os
import re
import shlex
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

import hopaas_p2p
from hopaas_p2p.errors import ConfigurationError, InvalidInput, NoSuchStudy
from hopaas_p2p.joining import membership, ways
from hopaas_p2p.joining.invitation import Invitation, invite
from hopaas_p2p.open import open_store
from hopaas_p2p.ports import batch
from hopaas_p2p.ports.batch import BatchJob
from hopaas_p2p.runtime import credentials, settings
from hopaas_p2p.runtime.settings import Secret, Settings
from tests.support.processes import ROOT, SPACE, cli

SECRET = "guest-digits-123456-worker.0a1b2c3d:hunter2hunter2hunter2hunter2"
WEEK = 7 * 86400


def invitation(store: str = "https://gw.example.org/tuning", study: str = "digits") -> Invitation:
    return Invitation(store, study, Secret(SECRET), int(time.time()) + WEEK, "north", "-- a certificate --")


@pytest.fixture(autouse=True)
def config(tmp_path: Path) -> Iterator[Path]:
    """The user's configuration, with nothing of an earlier test. A process that joins changes its environment."""
    before = dict(os.environ)
    for name in before:
        if name.startswith("HOPAAS_") and not name.startswith("HOPAAS_TEST"):
            del os.environ[name]
    os.environ["XDG_CONFIG_HOME"] = str(tmp_path / "config")
    yield tmp_path / "config" / "hopaas-p2p" / "joined"
    os.environ.clear()
    os.environ.update(before)


# --- the string ------------------------------------------------------------------------------------------------------


def test_an_invitation_is_one_word_that_says_everything() -> None:
    made = invitation()
    text = made.seal().reveal()
    assert text.startswith("hpj1-")
    assert text.isascii()
    assert len(text.split()) == 1
    assert Invitation.parse(f" {text[:40]}\n{text[40:]}\n") == made


def test_an_invitation_in_a_file_of_an_editor_that_marks_its_encoding_is_read() -> None:
    made = invitation()
    assert Invitation.parse(f"\ufeff{made.seal().reveal()}\r\n") == made


def test_an_invitation_is_shown_by_no_repr() -> None:
    made = invitation()
    assert SECRET not in f"{made!r} {made} {made.seal()!r}"
    assert made.seal().reveal() not in repr(made)


@pytest.mark.parametrize("cut", [0, 4, 20, -1])
def test_a_part_of_an_invitation_is_refused_without_being_shown(cut: int) -> None:
    text = invitation().seal().reveal()
    with pytest.raises(InvalidInput, match="not an invitation") as refused:
        Invitation.parse(text[:cut])
    assert text[5:15] not in str(refused.value)


def test_an_invitation_whose_time_is_over_says_how_to_get_another() -> None:
    old = replace(invitation(), expires=int(time.time()) - 1)
    with pytest.raises(ConfigurationError, match="hopaas-p2p invite digits"):
        membership.accept(old)


def test_an_invitation_of_a_stranger_takes_no_token_along(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "own").write_text("mine:secret")
    monkeypatch.setenv("HOPAAS_TOKEN_FILE", str(tmp_path / "own"))
    with pytest.raises(InvalidInput, match="contains no token"):
        membership.accept(replace(invitation(), token=None))
    kept = membership.accept(invitation())
    ways.enter(kept)
    role, _, password = SECRET.partition(":")
    assert credentials.login(None, [("gw.example.org", 443)]) == (role, Secret(password))


def test_an_invitation_to_a_directory_holds_no_secret_and_needs_the_study(tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    hopaas_p2p.open_study(store, "digits", space=SPACE).close()
    made = invite(store, "digits", days=1, site="north")
    assert made.invitation.token is None
    assert made.invitation.store == (tmp_path / "store").as_uri()
    with pytest.raises(NoSuchStudy):
        invite(store, "letters")
    for days in (0, 367):
        with pytest.raises(InvalidInput, match="days"):
            invite(store, "digits", days=days)


def test_an_invitation_says_which_server_it_leads_to(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hopaas_p2p.open_study(store := str(tmp_path / "store"), "digits", space=SPACE).close()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://s3.example.org")
    monkeypatch.setenv("PGHOST", "db.example.org")
    made = invite(store, "digits", via="s3://bucket/x").invitation
    assert "endpoint=https://s3.example.org" in made.store
    with pytest.raises(ConfigurationError, match="on which server"):
        invite(store, "digits", via="postgresql:///store")
    for url in ("s3://bucket/x", "S3://bucket/x?region=eu-1&endpoint=", "postgresql:///store"):
        with pytest.raises(ConfigurationError, match="on which server"):
            membership.accept(invitation(url))


@pytest.mark.parametrize("url", ["http://gateway.example.org", "htps://gateway.example.org", "sqlite:///store.db"])
def test_nobody_is_invited_to_an_address_that_no_store_can_have(url: str, tmp_path: Path) -> None:
    hopaas_p2p.open_study(store := str(tmp_path / "store"), "digits", space=SPACE).close()
    with pytest.raises(ConfigurationError, match=r"is not encrypted|no store has the scheme"):
        invite(store, "digits", via=url)


def test_a_path_for_guests_leads_to_one_directory_wherever_they_read_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hopaas_p2p.open_study(store := str(tmp_path / "store"), "digits", space=SPACE).close()
    monkeypatch.chdir(tmp_path)
    assert invite(store, "digits", via="store").invitation.store == (tmp_path / "store").as_uri()


@pytest.mark.parametrize(
    "store",
    [
        "s3://[",
        "s3://b\x1b[2J",
        "s3://bucket?endpoint=https://[",
        "file://[",
        "folder://[",
        "postgresql://u:hunter2@/db",
    ],
)
def test_a_url_that_cannot_be_read_shows_neither_a_secret_nor_what_a_terminal_obeys(store: str) -> None:
    made = Invitation(store, "digits", None if store.startswith("f") else Secret("t"), int(time.time()) + WEEK)
    with pytest.raises((ConfigurationError, InvalidInput)) as refused:
        open_store(membership.accept(made).store, create=False)
    assert str(refused.value).isprintable()
    assert "hunter2" not in str(refused.value)


# --- what a site keeps ----------------------------------------------------------------------------------------------


def test_what_is_kept_is_for_this_user_alone_and_the_token_for_its_host(config: Path) -> None:
    kept = membership.accept(invitation())
    assert kept.name == "digits"
    assert SECRET not in kept.file("toml").read_text() + repr(kept)
    assert (config / "digits.token").read_text().strip() == SECRET
    assert kept.values["token_host"] == "gw.example.org:443"
    assert [stat.S_IMODE(path.stat().st_mode) for path in config.iterdir()] == [0o600] * 3
    assert stat.S_IMODE(config.stat().st_mode) == 0o700
    assert membership.load("digits") == kept


def test_a_study_that_is_joined_again_keeps_its_name_and_another_of_that_name_gets_its_own() -> None:
    first = membership.accept(invitation())
    assert membership.accept(invitation(), site="south").name == first.name
    assert membership.accept(invitation("https://other.example.org/tuning")).name == "digits-2"
    assert settings.joined_names() == ["digits", "digits-2"]
    membership.forget("digits")
    assert settings.joined_names() == ["digits-2"]


def test_two_studies_of_one_name_that_are_joined_at_once_get_names_and_tokens_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stores = ["https://one.example.org/tuning", "https://two.example.org/tuning"]
    kept: list[membership.Membership] = []
    second = threading.Thread(target=lambda: kept.append(membership.accept(invitation(stores[1]))))
    real = membership.keep

    def keep(found: membership.Membership) -> membership.Membership:
        if found.store == stores[0]:  # its token is written, its settings are not
            second.start()
            second.join(0.3)
        return real(found)

    monkeypatch.setattr(membership, "keep", keep)
    kept.append(membership.accept(invitation(stores[0])))
    second.join(30)
    assert {one.name: one.store for one in kept} == {"digits": stores[0], "digits-2": stores[1]}


def test_the_only_joined_study_counts_where_nothing_names_a_store(monkeypatch: pytest.MonkeyPatch) -> None:
    membership.accept(invitation())
    assert Settings().get("store") == "https://gw.example.org/tuning"
    assert Settings().get("study") == "digits"
    assert Settings(names_store=True).get("token_file") is None
    monkeypatch.setenv("HOPAAS_STORE", "./campaign")
    assert Settings().get("token_file") is None


def test_of_several_joined_studies_the_one_that_is_named_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    membership.accept(invitation())
    membership.accept(invitation(study="letters"))
    assert Settings().get("store") is None
    monkeypatch.setenv("HOPAAS_JOINED", "letters")
    assert Settings().get("study") == "letters"
    monkeypatch.setenv("HOPAAS_JOINED", "numbers")
    with pytest.raises(ConfigurationError, match="joined: digits, letters"):
        Settings().get("study")


@pytest.mark.parametrize("name", ["\U0001f680", "caf\u00e9", 'a"b\\c', "\u202e"])
def test_a_study_of_any_name_can_be_joined(name: str) -> None:
    made = membership.accept(invitation(study=name), site=name)
    known = membership.load(made.name)
    assert (known.study, known.values["site"]) == (name, name)


@pytest.mark.parametrize("name", ["\x7f", "a\nb = 1", "a\u2028b", "\x1b[2J"])
def test_a_name_that_is_not_one_line_is_not_kept(name: str, config: Path) -> None:
    for made, site in ((invitation(study=name), ""), (invitation(), name), (replace(invitation(), site=name), "")):
        with pytest.raises(InvalidInput, match="a line break or another control character"):
            membership.accept(made, site=site)
    assert not config.exists()


@pytest.mark.parametrize("expires", [-(10**18), 1 << 62])
def test_an_invitation_of_a_time_that_no_calendar_has_is_none(expires: int) -> None:
    text = replace(invitation(), expires=expires).seal().reveal()
    with pytest.raises(InvalidInput, match="not an invitation"):
        Invitation.parse(text)


def test_a_file_that_others_may_write_does_not_count(config: Path) -> None:
    membership.accept(invitation())
    (config / "digits.toml").chmod(0o666)
    with pytest.raises(ConfigurationError, match="cannot be used"):
        Settings().get("store")


def test_a_proxy_that_was_kept_is_used_where_none_is_set(monkeypatch: pytest.MonkeyPatch, config: Path) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    kept = membership.accept(invitation()).with_proxy(Secret("http://site:pw@proxy:3128"))
    assert "pw" not in kept.file("toml").read_text()
    env = {"XDG_CONFIG_HOME": str(config.parents[1])}
    Settings(env=env).publish()
    assert env["HTTPS_PROXY"] == "http://site:pw@proxy:3128"
    env = {"XDG_CONFIG_HOME": str(config.parents[1]), "HTTPS_PROXY": "http://other:1"}
    Settings(env=env).publish()
    assert env["HTTPS_PROXY"] == "http://other:1"


def test_where_no_way_leads_to_the_store_each_that_was_tried_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://site:hunter2@127.0.0.1:9")
    kept = membership.accept(replace(invitation("https://gateway.invalid/tuning"), authority=""))
    ways.enter(kept)
    said: list[str] = []
    with pytest.raises(ConfigurationError, match=r"tried: proxy, direct"):
        ways.find(kept, lambda finding: said.append(f"{finding.check} {finding.detail} {finding.cure}"))
    text = "\n".join(said)
    assert "proxy: proxy the proxy http://127.0.0.1:9 cannot be reached" in text
    assert "direct: name gateway.invalid has no address" in text
    assert "hunter2" not in text


@pytest.mark.parametrize("given", ["{}", '"{}"', "'{}'", " {}"])
def test_an_invitation_is_not_taken_as_an_argument(tmp_path: Path, given: str) -> None:
    text = invitation().seal().reveal()
    done = cli("join", given.format(text), "--", "true", cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert "arguments are visible in every process list" in done.stderr
    assert text not in done.stderr


# --- batch jobs ------------------------------------------------------------------------------------------------------


def job(**more: object) -> BatchJob:
    command = ("python", "train.py", "--lr", "{lr}", "--note", "it's $HOME")
    made = BatchJob("My study!", command, ("hopaas-p2p", "join"), environment={"HOPAAS_JOINED": "digits"})
    return made._replace(**{"jobs": 20, "gpus": 1, "memory": "16G", **more})


def written(system: str, **more: object) -> str:
    return "\n".join(batch.files(system, job(**more)).values())


@pytest.mark.parametrize("system", batch.SYSTEMS)
def test_a_script_has_no_gap_left_and_hands_the_command_over_as_it_is(system: str) -> None:
    text = written(system, image="registry.example.org/me/train:1" if system == "kubernetes" else "")
    assert not batch._WORD.search(text)
    assert "hopaas-my-study" in text
    assert ("it's $$HOME" if system == "kubernetes" else "'it'\"'\"'s $HOME'") in text


@pytest.mark.parametrize("system", batch.SYSTEMS)
def test_studies_of_like_names_and_of_two_stores_share_neither_a_file_nor_a_secret(system: str) -> None:
    """Who invites chooses the study's name, and a pod gets the token that lies in the Secret of this name."""
    jobs = [
        job(study=name, image="me/train:1" if system == "kubernetes" else "") for name in ("alpha", "Alpha!", "é", "ü")
    ]
    jobs += [jobs[0]._replace(environment={"HOPAAS_STORE": url}) for url in ("https://a.org/t", "https://b.org/t")]
    assert len({made.name for made in jobs}) == len(jobs)
    assert len({path for made in jobs for path in batch.files(system, made)}) == len(jobs) * len(batch._FILES[system])
    assert jobs[0].name == job(study="alpha").name
    assert all(re.fullmatch(r"hopaas-[a-z0-9-]{1,47}", made.name) for made in jobs)


def test_the_script_of_slurm_is_the_example_with_values_in_it() -> None:
    text = written("slurm", queue="gpu", account="physics", more=("--qos=low",), seconds=5400)
    lines = text.splitlines()
    wanted = ["--array=0-19", "--time=1:30:00", "--gpus=1", "--mem=16G", '--partition="gpu"', "--qos=low"]
    for option in (*wanted, '--account="physics"'):
        assert f"#SBATCH {option}" in lines
    example = (ROOT / "examples/slurm/array.sh").read_text()
    shared = example[example.index("worker=$!") :]
    assert text.endswith(shared)


def test_the_files_of_htcondor_say_what_the_example_says() -> None:
    text = written("condor")
    example = (ROOT / "examples/htcondor/worker.sub").read_text()
    for line in example.splitlines():
        if line.startswith(("kill_sig", "want_graceful", "on_exit_remove", "job_max_vacate")):
            assert line in text
    assert "queue 20" in text


def test_the_manifest_of_kubernetes_has_the_shape_of_the_example() -> None:
    import yaml

    made = yaml.safe_load(written("kubernetes", image="me/train:1"))
    example = yaml.safe_load((ROOT / "examples/kubernetes/job.yaml").read_text())
    assert made["spec"].keys() == example["spec"].keys()
    assert made["spec"]["podFailurePolicy"] == example["spec"]["podFailurePolicy"]
    pod, other = made["spec"]["template"]["spec"], example["spec"]["template"]["spec"]
    assert pod.keys() == other.keys()
    assert pod["containers"][0].keys() == other["containers"][0].keys() - {"args"}
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_kubernetes_puts_no_variable_into_what_an_invitation_or_a_command_says() -> None:
    import yaml

    said = "north $(KUBERNETES_SERVICE_HOST) $$"
    made = yaml.safe_load(
        written("kubernetes", image="me/train:1", environment={"HOPAAS_SITE": said}, command=("sh", "-c", said))
    )
    pod = made["spec"]["template"]["spec"]["containers"][0]
    assert [pod["command"][-1], pod["env"][0]["value"]] == ["north $$(KUBERNETES_SERVICE_HOST) $$$$"] * 2


def test_kubernetes_gets_a_text_with_an_emoji_as_it_is() -> None:
    import yaml

    said = "st\U0001f600\x85\u2028é"
    made = yaml.safe_load(
        written("kubernetes", image="me/train:1", environment={"HOPAAS_SITE": "st\U0001f600"}, command=("echo", said))
    )
    pod = made["spec"]["template"]["spec"]["containers"][0]
    assert [pod["command"][-1], pod["env"][0]["value"]] == [said, "st\U0001f600"]


@pytest.mark.parametrize(
    ("system", "more", "why"),
    [
        ("kubernetes", {}, "--image"),
        ("slurm", {"memory": "lots"}, "--memory"),
        ("slurm", {"more": ("--qos=low\nrm -rf /",)}, "one line"),
        ("slurm", {"environment": {"HOPAAS_SITE": "north\nrm -rf /"}}, "one line"),
        ("condor", {"options": ("--site", "north\rrm -rf /")}, "one line"),
        ("slurm", {"folder": Path("jobs\n#SBATCH --wrap=id")}, "one line"),
        ("slurm", {"folder": Path("a\\b/jobs")}, "folder's or account's name"),
        ("condor", {"folder": Path("a\\b/jobs")}, "folder's or account's name"),
        ("condor", {"folder": Path("$$(Arch)/jobs")}, "folder's or account's name"),
        ("condor", {"folder": Path("$(dollar)/jobs")}, "folder's or account's name"),
        ("slurm", {"command": ()}, "after --"),
    ],
)
def test_a_job_that_cannot_be_is_refused(system: str, more: dict[str, object], why: str) -> None:
    with pytest.raises(InvalidInput, match=why):
        batch.files(system, job(**more))


@pytest.mark.parametrize("name", ["a b", "x --export=ALL,Y=", "q' --export=ALL '", 'd"x', "a #b", "é"])
def test_no_name_of_a_folder_adds_an_option_for_slurm(tmp_path: Path, name: str) -> None:
    """sbatch splits the lines of #SBATCH as a shell splits words."""
    text = written("slurm", folder=tmp_path / name, queue=name, account=name)
    lines = [shlex.split(line, comments=True) for line in re.findall("^#SBATCH (.*)$", text, re.MULTILINE)]
    assert all(len(words) == 1 for words in lines)
    wanted = [f"--output={tmp_path / name}/{job().name}-%a.out", f"--partition={name}", f"--account={name}"]
    assert [[one] for one in wanted if [one] not in lines] == []


def test_slurm_replaces_nothing_in_the_name_of_a_folder() -> None:
    assert f'#SBATCH --output="/x%%d/{job().name}-%a.out"' in written("slurm", folder=Path("/x%d"))


@pytest.mark.parametrize("name", ["$ENV(WANDB_API_KEY)", "x$(Process)"])
def test_htcondor_puts_nothing_in_place_of_the_name_of_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Everybody may read the job's description, in which a variable of the environment would be."""
    here = tmp_path / name
    here.mkdir()
    monkeypatch.chdir(here)
    text = list(batch.files("condor", job(folder=here, account=name)).values())[-1]
    assert text.count("$(DOLLAR)" + name[name.index("$") + 1 :]) == 6
    assert set(re.findall(r"\$\(?\w*", text)) == {"$(DOLLAR", "$(Process"}


def test_a_script_for_slurm_queues_itself_again_as_the_example_does() -> None:
    """The example is there to be read and copied, so its lines stand in both files."""
    example = (ROOT / "examples" / "slurm" / "array.sh").read_text()
    template = (ROOT / "hopaas_p2p" / "ports" / "templates" / "slurm.sh").read_text()
    assert example.partition("worker=$!\n")[2] == template.partition("worker=$!\n")[2] != ""
