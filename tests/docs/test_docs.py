"""The documentation is true: every block runs, generated parts are current, links and named tests exist."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from hopaas_p2p.cli.main import cli
from hopaas_p2p.peer.peer import _SHUTDOWN_TIMEOUT
from tests.support import docs_generated
from tests.support.needs import need_programs
from tests.support.pages import ROOT, blocks, run_page


def _pages() -> list[Path]:
    return [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_the_documentation_can_be_taken_in() -> None:
    pages = [page for page in _pages() if page.name != "CHANGELOG.md" and page.parent.name != "adr"]
    words = {page.name: len(page.read_text(encoding="utf-8").split()) for page in pages}

    assert len(pages) <= 30
    assert sum(words.values()) <= 30_000, words


def _figures(page: str) -> dict[str, set[str]]:
    """The numbers below each heading."""
    parts = re.split(r"^## (.+)$", (ROOT / page).read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    found = zip(parts[::2], parts[1::2], strict=True)
    return {heading: {number.rstrip(".,") for number in re.findall(r"\d[\d.,]*", text)} for heading, text in found}


def test_the_figures_of_the_page_on_benchmarks_are_those_that_were_measured() -> None:
    shown, measured = _figures("docs/benchmarks.md"), _figures("tests/benchmarks/results.md")

    assert len(shown) > 10
    for heading, numbers in shown.items():
        assert numbers <= measured[heading], f"{heading}: not in tests/benchmarks/results.md"


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "docs/index.md",
        "docs/budgets.md",
        "docs/fidelity.md",
        "docs/quickstart.md",
        "docs/join.md",
        "docs/monitor.md",
        "docs/moving.md",
        "docs/optuna.md",
    ],
)
def test_every_block_runs_in_the_order_of_the_page(page: str, tmp_path: Path) -> None:
    """As a reader would: one directory, one block after another, with the installed program."""
    run_page(page, tmp_path)


def test_every_block_on_other_languages_runs_in_the_order_of_the_page(tmp_path: Path) -> None:
    need_programs("docs/local.md", "curl", "curl")
    run_page("docs/local.md", tmp_path)


def test_the_two_commands_of_the_readme_are_targets_of_the_makefile() -> None:
    readme = (ROOT / "README.md").read_text()
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))

    named = set(re.findall(r"^    make (\w+)", readme, re.MULTILINE))

    assert named == {"demo", "test"}
    assert named <= targets


@pytest.mark.parametrize("page", docs_generated.pages(), ids=lambda page: page.name)
def test_generated_parts_are_current(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert docs_generated.rewritten(text) == text, "run: make docs"


def test_every_generated_part_stands_somewhere() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in docs_generated.pages())
    for name in docs_generated.PARTS:
        assert f"<!-- generated: {name} -->" in text


def _tests_of(path: Path) -> set[str]:
    """The tests of a file, those of its classes as `Class::test`."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found.update(f"{node.name}::{one.name}" for one in node.body if isinstance(one, ast.FunctionDef))
    return found


def test_every_test_that_the_guarantees_name_exists() -> None:
    text = (ROOT / "docs/guarantees.md").read_text()
    rows = re.findall(r"^\| (\d+) \| .*?\. \| (.*) \|$", text, re.MULTILINE)

    assert len(rows) >= 14
    assert [int(number) for number, _ in rows] == list(range(1, len(rows) + 1))
    for number, held_by in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)::([\w:]+)`", held_by)
        assert named, f"promise {number} names no test"
        for file, test in named:
            assert test in _tests_of(ROOT / file), f"promise {number}: there is no {file}::{test}"


def test_every_link_leads_somewhere() -> None:
    for page in _pages():
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
            if "://" in target:
                continue
            file, _, heading = target.partition("#")
            there = page.parent / file if file else page
            assert there.exists(), f"{page.name}: {target}"
            assert not heading or heading in _anchors(there), f"{page.name}: {target}"


def _anchors(page: Path) -> set[str]:
    """What a link to a heading of this page may say."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_decisions_have_numbers_of_their_own_and_say_what_was_decided() -> None:
    decisions = sorted((ROOT / "docs/adr").glob("*.md"))

    assert len({path.name[:4] for path in decisions}) == len(decisions)
    for path in decisions:
        text = path.read_text()
        assert text.startswith(f"# {int(path.name[:4])}. "), path.name
        assert "**Decision.**" in text, path.name


_COMMAND = re.compile(
    r"^\s*(?:\$ |[A-Z_]+=\S+ |nohup |srun |exec )*(hopaas-p2p [^|>&;#\n]+)|`(hopaas-p2p [^`|]+)", re.MULTILINE
)


def _shown_commands(page: Path) -> Iterator[list[str]]:
    """The words of every command of ours that a page shows, in a block or in a line."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for found in _COMMAND.finditer(text):
        words = (found[1] or found[2]).split("\n")[0]
        if not any(letter in words for letter in "│…·"):  # a picture, a line of a list
            yield shlex.split(words.replace("'", " ").replace('"', " "))


@pytest.mark.parametrize("page", _pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_that_is_shown_is_one_that_there_is(page: Path) -> None:
    for words in _shown_commands(page):
        command: click.Command = cli
        for word in words[1:]:
            if isinstance(command, click.Group) and not word.startswith("-"):
                context = click.Context(command)
                command = command.get_command(context, word) or pytest.fail(f"{page.name}: {' '.join(words)}: {word}?")
            elif word == "--":
                break
            elif re.match(r"--[a-z]", word):
                known = {option for param in command.params for option in (*param.opts, *param.secondary_opts)}
                assert word.partition("=")[0] in known | {"--help", "--version"}, f"{page.name}: {' '.join(words)}"


def test_the_commands_without_json_are_those_that_the_page_names() -> None:
    head = " ".join((ROOT / "docs/cli.md").read_text(encoding="utf-8").partition("## ")[0].split())

    named = re.search(r"Every command but (.+) takes `--json`", head)

    assert named, head
    assert set(re.findall(r"`(.+?)`", named[1])) == set(_without("--json", cli))


def _without(option: str, group: click.Group, path: str = "") -> Iterator[str]:
    """The commands that do not have this option."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command, words = group.get_command(context, name), f"{path} {name}".strip()
        if isinstance(command, click.Group):
            yield from _without(option, command, words)
        elif command is not None and all(option not in param.opts for param in command.get_params(context)):
            yield words


def test_the_page_on_postgres_says_for_how_long_a_program_that_ends_waits() -> None:
    page = " ".join((ROOT / "docs/postgres.md").read_text(encoding="utf-8").split())

    assert f"in a program that is about to end, after {_SHUTDOWN_TIMEOUT:.0f} s" in page


def test_every_page_with_blocks_to_run_is_run_by_a_test() -> None:
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    for page in _pages():
        if any(block.language in ("sh", "python") for block in blocks(page)):
            assert f'"{page.relative_to(ROOT)}"' in tests, f"{page.name} has blocks that no test runs"


def _texts_of_the_code() -> str:
    """All string constants of the package; the parts of an f-string follow each other."""
    found = []
    for path in sorted((ROOT / "hopaas_p2p").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def test_every_message_on_the_page_on_troubleshooting_is_one_that_the_program_says() -> None:
    page = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    cells = [line.split("|")[1] for line in page.splitlines() if line.startswith("| ")]
    messages = [message for cell in cells for message in re.findall(r'"([^"]+)"', cell)]
    texts = _texts_of_the_code()

    assert len(messages) > 25
    assert [message for message in messages if message not in texts] == []
