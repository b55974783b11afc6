"""The documentation as a site: warnings are errors, all pages are there, and a reader's browser asks nobody else for anything."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocstrings", reason="the extra `docs` is not installed")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_every_page_is_there(site: Path) -> None:
    pages = {page.relative_to(ROOT / "docs").with_suffix(".html") for page in (ROOT / "docs").rglob("*.md")}
    there = {page.relative_to(site) for page in site.rglob("*.html")}
    assert pages | {Path("clusters.html"), Path("contributing.html"), Path("changes.html")} <= there
    assert not list(site.rglob("*.py"))


def test_docstrings_became_reference(site: Path) -> None:
    for page, name in [
        ("model", "dgl_scale.model.dgl.DGL.encode_video"),
        ("config", "dgl_scale.config.TrainingConfig.global_batch_size"),
        ("data", "dgl_scale.data.index.load_split"),
        ("evaluation", "dgl_scale.evaluation.embedding.evaluate_model"),
    ]:
        assert f'id="{name}"' in (site / "api" / f"{page}.html").read_text(encoding="utf-8")


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        html = page.read_text(encoding="utf-8")
        assert not re.findall(r'<(?:script|img|iframe)[^>]*src="https?:|<link[^>]*rel="(?:stylesheet|preconnect)"[^>]*href="https?:', html)
