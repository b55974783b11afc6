"""A hook of mkdocs: pages of the site that live elsewhere in the repository, and links to them."""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_ROOT = Path(__file__).resolve().parents[1]
# File of the repository to page of the site. The README has none: docs/index.md stands for it.
_PAGES = {"cluster/README.md": "clusters.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changes.md"}
_LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that live elsewhere."""
    for source, page in _PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(_ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links, which work in the repository, into those of the site."""
    sources = {name: source for source, name in _PAGES.items()}
    home = posixpath.dirname(sources.get(page.file.src_uri, f"docs/{page.file.src_uri}"))
    here = posixpath.dirname(page.file.src_uri) or "."

    def turn(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(home, link[1]))
        name = "index.md" if target == "README.md" else _PAGES.get(target, target.removeprefix("docs/"))
        return f"]({posixpath.relpath(name, here)}"

    return _LINK.sub(turn, markdown)
