"""The documentation site: pages from the code are what the code says, every page has a place, every link leads somewhere."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tools import autoscaling_plot
from tools.reference.config_file import MODELS
from tools.reference.key_texts import TEXTS, TITLES
from tools.reference.pages import PAGES

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
FOUND = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
LINK = re.compile(r"(?<!\\)\[(?:[^\]\[]|\[[^\]]*\])*\]\(([^)\s]+)\)")


@pytest.mark.parametrize("name", PAGES)
def test_a_page_from_the_code_is_what_the_code_says(name: str) -> None:
    assert (DOCS / "reference" / name).read_text() == PAGES[name](), "run: make reference"


def test_the_site_is_built_of_the_pages_as_they_are() -> None:
    """One that made them would do so before the tests of a whole run, and none could be out of date."""
    made = subprocess.run(["make", "-n", "docs"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "mkdocs build" in made.stdout
    assert "tools.reference" not in made.stdout


def test_the_plot_of_autoscaling_is_what_the_autoscaler_decides() -> None:
    assert autoscaling_plot.PICTURE.read_text() == autoscaling_plot.picture(), "run: python -m tools.autoscaling_plot"


def test_every_key_has_a_text_and_every_text_a_key() -> None:
    assert set(TEXTS) == set(TITLES) == {model.__name__ for model in MODELS}
    for model in MODELS:
        assert set(TEXTS[model.__name__]) == set(model.model_fields), model.__name__


def navigation(entry: Any) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    parts = entry.values() if isinstance(entry, dict) else entry
    return [page for part in parts for page in navigation(part)]


def test_every_page_has_one_place_in_the_navigation() -> None:
    assert sorted(navigation(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])) == FOUND


def without_code(text: str) -> str:
    return re.sub(r"`[^`\n]+`", "", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))


def anchors(text: str) -> set[str]:
    """Those of a page's headings, as both the site and a view of the repository make them."""
    found: dict[str, int] = {}
    lines = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE).splitlines()
    for line in lines:
        if heading := re.match(r"#{1,6} (.*)", line):
            words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading[1])
            anchor = re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", words).strip().lower())
            found[anchor] = found.get(anchor, 0) + 1
    return {name if n == 0 else f"{name}_{n}" for name, count in found.items() for n in range(count)}


@pytest.mark.parametrize("page", [*FOUND, "../README.md"])
def test_every_link_leads_somewhere(page: str) -> None:
    path = DOCS / page
    for target in LINK.findall(without_code(path.read_text())):
        if re.match(r"https?:", target):
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path.resolve()
        assert there.exists(), f"{page}: {target}"
        # the site has the folder docs alone; the README is read in the repository
        assert page == "../README.md" or there.is_relative_to(DOCS), f"{page}: {target} is not in docs/"
        if anchor:
            assert anchor in anchors(there.read_text()), f"{page}: {target}"
