"""Every relative link of the documentation leads to a file, and to a heading where it names one."""

import re
from pathlib import Path

import pytest

from tests.docs.documented import PAGES, ROOT, links


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in links(page):
        if target.startswith(("https://", "http://")):
            continue
        name, _, heading = target.partition("#")
        file = page if not name else page.parent / name
        assert file.is_file(), f"{page.name}: {target}"
        assert ROOT in file.resolve().parents
        if heading:
            assert heading in _headings(file), f"{page.name}: {target}"


def _headings(page: Path) -> set[str]:
    """The anchors that GitHub and the site make of a page's headings."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def test_named_tests_are_there() -> None:
    """`a/test_b.py::test_c` below tests/, `test_c` anywhere, and `test_c_…` as a beginning."""
    sources = {str(file.relative_to(ROOT / "tests")): file.read_text(encoding="utf-8") for file in (ROOT / "tests").rglob("test_*.py")}
    found = 0
    for page in PAGES:
        for file, name in re.findall(r"`(?:([\w/]+\.py)::)?(test_\w+…?)`", page.read_text(encoding="utf-8")):
            texts = [sources[file.removeprefix("tests/")]] if file else list(sources.values())
            start = rf"^def {name.removesuffix('…')}" + ("" if name.endswith("…") else r"\(")
            assert any(re.search(start, text, flags=re.MULTILINE) for text in texts), f"{page.name}: {name}"
            found += 1
    assert found > 10
