"""The site builds with every link right, and asks no other server for anything."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.pages import ROOT

import attrace

pytest.importorskip("mkdocs")


def build(folder: Path, site: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(folder / "mkdocs.yml"), "-d", str(site)]
    return subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, check=False
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT, folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    loads = re.compile(r'<(?:script|img|iframe|source)[^>]*\ssrc="?(?://|https?:)|<link[^>]*\shref="?(?://|https?:)')
    pages = list(site.rglob("*.html"))
    assert len(pages) > 10
    assert [page.name for page in pages if loads.search(page.read_text(encoding="utf-8"))] == []
    styles = [style.read_text(encoding="utf-8") for style in site.rglob("*.css")]
    assert styles
    assert not any(re.search(r"url\(['\"]?(?://|https?:)|@import", style) for style in styles)


def test_the_readme_and_what_pages_link_to_are_there(site: Path) -> None:
    assert (site / "schemas/manifest-1.0.schema.json").read_bytes() == (
        ROOT / "schemas/manifest-1.0.schema.json"
    ).read_bytes()
    assert (site / "examples/sd3.py").is_file()
    first = (site / "index.html").read_text(encoding="utf-8")
    assert 'src="pictures/report-wide.png"' in first
    assert 'href="examples/demo/MODEL_CARD.html"' in first
    assert 'href="start.html"' in first


@pytest.mark.parametrize("package", ["analysis", "recorder"])
def test_every_room_has_its_page(package: str, site: Path) -> None:
    rooms = {path.parent.name for path in (ROOT / package).glob("*/__init__.py")}
    assert rooms == {page.stem.partition(".")[2] for page in (site / "api").glob(f"{package}.*.html")}
    house = (site / "house.html").read_text(encoding="utf-8")
    assert [room for room in rooms if f'href="api/{package}.{room}.html"' not in house] == []


def test_every_public_name_leads_to_its_docstring(site: Path) -> None:
    page = (site / "api/attrace.html").read_text(encoding="utf-8")
    named = set(dir(attrace)) - {"analysis", "recorder", "schemas"}
    links = dict(re.findall(r'href="([\w.]+\.html#attrace\.[\w.]+?\.(\w+))"', page))
    assert set(links.values()) >= named
    for link in links:
        file, _, anchor = link.partition("#")
        assert f'id="{anchor}"' in (site / "api" / file).read_text(encoding="utf-8"), link


@pytest.mark.parametrize(
    "link", ["[a page](nowhere.md)", "[a file](../examples/nowhere.py)", "[a heading](other.md#nowhere)"]
)
def test_a_link_to_nothing_fails(link: str, tmp_path: Path) -> None:
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    nav = re.search(r"^nav:\n(?:[ \n].*\n|\n)+", settings, re.MULTILINE)
    assert nav
    (tmp_path / "mkdocs.yml").write_text(settings.replace(nav[0], ""), encoding="utf-8")
    (tmp_path / "docs").mkdir()
    for hook in ("hooks.py", "api_pages.py"):
        (tmp_path / "docs" / hook).write_bytes((ROOT / "docs" / hook).read_bytes())
    (tmp_path / "docs/other.md").write_text("# Other\n", encoding="utf-8")
    (tmp_path / "README.md").write_text("# Home\n\n[other](docs/other.md)\n", encoding="utf-8")
    assert build(tmp_path, tmp_path / "site").returncode == 0
    (tmp_path / "docs/other.md").write_text(f"# Other\n\n{link}\n", encoding="utf-8")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode != 0
    assert "nowhere" in done.stderr
