"""The site: MkDocs builds it without a warning, and a reader's browser asks nobody else for anything."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if os.environ.get("HOPAAS_TEST_REQUIRE") != "all":
        pytest.importorskip("material", reason="MkDocs is not here: pip install 'hopaas-p2p[docs]'")
    place = tmp_path_factory.mktemp("site")
    nowhere = {"HTTP_PROXY": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9", "NO_PROXY": ""}
    env = {**os.environ, **nowhere, "NO_MKDOCS_2_WARNING": "1", "PYTHONWARNINGS": ""}
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(place)],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return place


class _Loads(HTMLParser):
    """What a page makes a browser fetch by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        said = dict(attrs)
        if tag in ("script", "img", "iframe", "source"):
            self.found.append(said.get("src") or "")
        if tag == "link" and said.get("rel") not in ("canonical", "next", "prev"):
            self.found.append(said.get("href") or "")


def test_the_site_is_built_without_a_warning_and_has_every_page(site: Path) -> None:
    pages = {path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")}

    missing = [str(page) for page in sorted(pages) if not (site / page).is_file()]

    assert missing == []


def test_no_page_asks_another_server_for_anything(site: Path) -> None:
    for page in site.rglob("*.html"):
        parser = _Loads()
        parser.feed(page.read_text(encoding="utf-8"))
        assert [one for one in parser.found if re.match(r"(https?:)?//", one)] == [], page


def test_the_reference_has_what_the_package_offers(site: Path) -> None:
    import hopaas_p2p

    text = "".join(page.read_text(encoding="utf-8") for page in [site / "reference.html"])

    methods = [
        f"Study.{name}" for name in ("ask", "tell", "optimize", "trial", "pause", "enqueue_trial", "search_with")
    ]
    wanted = [*hopaas_p2p.__all__, *methods]
    assert [name for name in wanted if f'id="hopaas_p2p.{name}"' not in text] == []


def test_every_fence_is_drawn_as_a_block(site: Path) -> None:
    assert [str(page) for page in site.rglob("*.html") if "<p>```" in page.read_text(encoding="utf-8")] == []
