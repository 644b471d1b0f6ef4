"""What others have named is shown as it is: nothing invisible, nothing that passes for another name, no escapes."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from hopaas_p2p.analysis.lookalikes import MARK, told_apart
from hopaas_p2p.cli.main import cli
from hopaas_p2p.cli.output import aligned, printable, shell_word
from hopaas_p2p.core.records import Categorical, PeerJoin
from hopaas_p2p.errors import visible
from tests.support.dashboard_studies import Scribe

TEXTS = [
    "plain",
    "",
    "it's",
    "a b",
    "$(id)`id`",
    "\x1b[2J\x07",
    "caf\u00e9 \u202e",
    "new\nline\t",
    "\\n'\\''",
    "\U0001f600",
]


@pytest.mark.parametrize("text", TEXTS)
def test_a_shell_gets_each_text_and_a_terminal_nothing_but_ascii(text: str) -> None:
    word = shell_word(text)
    assert word.isascii()
    assert word.isprintable()
    echoed = subprocess.run(["bash", "-c", f"printf %s {word}"], capture_output=True, check=True)
    assert echoed.stdout.decode() == text


def test_ask_for_a_shell_prints_no_escape(tmp_path: Path) -> None:
    text = "\x1b]0;owned\x07\u202e"
    scribe = Scribe(space={"c": Categorical((text,))})
    scribe.put_into(str(tmp_path))
    for words in (["--shell"], []):
        done = CliRunner().invoke(cli, ["trial", "ask", "--study", "study", "--store", str(tmp_path), *words])
        assert done.exit_code == 0, done.output
        assert done.stdout.replace("\n", "").isprintable()
        assert done.stdout.isascii()


@pytest.mark.parametrize(
    "names",
    [
        ["paypal", "p\u0430ypal"],
        ["\u0441\u043e\u0441\u043e", "coco"],
        ["run", "run\u200b", "r\u200dun", "run\ufe0f", "\u202erun\u202c"],
        ["caf\u00e9", "cafe\u0301"],
        ["a b", "a  b", "a\u00a0b", " a b", "a b\n", "a\u3000b"],
        ["digits", "\uff44igits", "digit\u0455"],
        ["\u0391\u0392\u0395", "ABE", "\u0410\u0412\u0415"],
        ["x-1", "x\u20101", "x\u22121"],
    ],
)
def test_names_that_look_alike_are_shown_apart(names: list[str]) -> None:
    shown = told_apart(names)
    assert len(set(shown)) == len(names)
    assert all(one.isascii() and one.isprintable() and one.endswith(MARK) for one in shown)
    _, *lines = aligned([["NAME"], *[[name] for name in names]], right=())
    assert len(set(lines)) == len(names)


def test_other_names_stay_as_they_are() -> None:
    names = [
        "digits",
        "Digits",
        "m\u00fcnchen",
        "\u043c\u043e\u0434\u0435\u043b\u044c",
        "\u6a21\u578b",
        "digits",
        "a\\b",
    ]
    assert told_apart(names) == names
    assert [printable(name) for name in names] == names


def test_letters_of_two_alphabets_in_one_name_are_written_out() -> None:
    assert told_apart(["p\u0430ypal"]) == ["p\\u0430ypal"]


def test_what_nobody_sees_is_written_out() -> None:
    assert (
        visible("a\u202eb\u200b\u2066\ufeff\u00ad\u3164\U000e0041")
        == "a\\u202eb\\u200b\\u2066\\ufeff\\u00ad\\u3164\\U000e0041"
    )
    assert printable("\x1b[31m") == "\\u001b[31m"


def test_lists_and_tables_tell_names_apart(tmp_path: Path) -> None:
    for at, name in enumerate(("digits", "d\u0456gits")):
        scribe = Scribe(name=name)
        for peer, site in (("a", "north"), ("b", "n\u043erth")):
            scribe.say(peer, PeerJoin({"site": site, "host": "n1", "pid": "1", "user": "ann"}))
            scribe.trial(peer, 1.0, lr=0.01)
        scribe.put_into(str(tmp_path), uuid=f"{at:016x}")
    for words, shown in (
        (["study", "list"], "d\\u0456gits (!)"),
        (["study", "list", "--names"], "d\\u0456gits (!)"),
        (["trial", "list", "--study", "digits"], "n\\u043erth) (!)"),
        (["peers", "list", "--all", "--study", "digits"], "n\\u043erth) (!)"),
    ):
        done = CliRunner().invoke(cli, [*words, "--store", str(tmp_path)])
        assert done.exit_code == 0, done.output
        assert shown in done.stdout
        assert "looks like another name" in done.stderr
    done = CliRunner().invoke(cli, ["study", "list", "--store", str(tmp_path), "--json"])
    assert [one["name"] for one in json.loads(done.stdout)] == ["digits", "d\u0456gits"]
