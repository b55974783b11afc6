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
