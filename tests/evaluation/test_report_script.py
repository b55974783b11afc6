"""The page's script in a real browser: what its filters leave, by the address that sets them, is what the ranks say."""

import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dgl_scale.data.samples import Sample
from dgl_scale.evaluation.caption_categories import caption_categories
from dgl_scale.evaluation.query_set import group_by_queries
from dgl_scale.evaluation.report import write_report
from dgl_scale.evaluation.run_report import build_report, load_evaluations
from tests.evaluation.conftest import make_sample, write_split
from tests.evaluation.evaluated_runs import write_run

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
QUIET = ("disable-quic", "no-first-run", "disable-background-networking", "disable-component-update", "disable-sync")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=2000", *(f"--{name}" for name in QUIET)]

Show = Callable[[str], str]


def sample_with_words(i: int) -> Sample:
    """Every third sample speaks of time, and of those every second at length."""
    sample = make_sample(i)
    words = "" if i % 3 else " before noon" if i % 2 else " before noon, and that is all that anybody saw of it"
    return replace(sample, metadata=replace(sample.metadata, captions=[caption + words for caption in sample.metadata.captions]))


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    split = write_split(folder / "shards" / "test", [sample_with_words(i) for i in range(11)])
    fewer = write_split(folder / "fewer" / "test", [make_sample(i) for i in range(5)])
    write_run(folder / "frozen", split, noise=1.5, latent_space=None, seed=5)
    write_run(folder / "good", split, noise=1.0)
    write_run(folder / "fewer", fewer, noise=1.0)
    return [folder / name for name in ("frozen", "good", "fewer")]


@pytest.fixture(scope="module")
def show(places: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Show:
    """`show("#…")`: the page's document after its script has run."""
    page = tmp_path_factory.mktemp("page") / "report.html"
    write_report(page, build_report(load_evaluations(places), title="title"))

    def dump(address: str) -> str:
        profile = tmp_path_factory.mktemp("profile")
        command = [str(BROWSER), *FLAGS, f"--user-data-dir={profile}", "--dump-dom", f"{page.as_uri()}{address}"]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout

    return dump


def ranks(places: list[Path], direction: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Rows of the model shown and of the baseline, of each query."""
    frozen, good = group_by_queries(load_evaluations(places[:2]))[0].answers[direction]
    return list(zip(good, frozen, strict=True))


def cards(document: str) -> list[str]:
    return re.findall(r'<article aria-labelledby="query-\d+">.*?</article>', document, re.DOTALL)


def count(document: str) -> str:
    found = re.search(r'id="count"[^>]*>([^<]*)<', document)
    assert found is not None
    return found.group(1)


def test_all_queries_with_their_top_five(show: Show, places: list[Path]) -> None:
    document = show("")
    pairs = ranks(places, "text_to_video")
    shares = [f"{100 * sum(pair[i]['rank'] <= 1 for pair in pairs) / 21:.1f}%" for i in (0, 1)]
    won, lost = (sum(sign * (theirs["rank"] - ours["rank"]) > 0 for ours, theirs in pairs) for sign in (1, -1))
    assert count(document) == (
        f"21 of 21 queries. Right one first: DGL-Linear (good, step 20) {shares[0]}, Frozen CLIP {shares[1]}. Won {won}, lost {lost}."
    )
    assert len(cards(document)) == 20
    assert ">Show 1 more of 1</button>" in document
    for card, (ours, theirs) in zip(cards(document), pairs, strict=False):
        assert ours["caption"].replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;") in card
        assert re.findall(r"<code>(.*?)</code>", card)[:5] == ours["top_keys"][:5]
        told = ["✓ first" if row["rank"] <= 1 else "✗ rank " + f"{row['rank']:.1f}".removesuffix(".0") for row in (theirs, ours)]
        assert re.findall(r'<strong class="\w+">(.*?)</strong>', card) == told
        assert card.count("data:image/webp;base64,") == card.count("<img") == len(re.findall(r"<code>", card))
        assert card.count("candidate right") == 1
    assert "<script>alert" not in document
    assert not re.search(r'<div id="gallery"[^>]*hidden', document)


@pytest.mark.parametrize(
    ("address", "wanted"),
    [
        ("#outcome=won", lambda ours, theirs: ours["rank"] < theirs["rank"]),
        ("#outcome=lost&search=CLIP%20alert(1)", lambda ours, theirs: ours["rank"] > theirs["rank"] and "alert(1)" in ours["caption"]),
        ("#outcome=missed&model=0&against=", lambda ours, theirs: theirs["rank"] > 5),
        ("#length=long&words=time&sort=gain", lambda ours, theirs: {"long", "time"} <= {*caption_categories(ours["caption"])}),
        ("#words=neither&search=clip_0", lambda ours, theirs: "before" not in ours["caption"] and ours["key"] < "clip_10"),
    ],
)
def test_filters(show: Show, places: list[Path], address: str, wanted: Callable[[dict[str, Any], dict[str, Any]], bool]) -> None:
    expected = [ours for ours, theirs in ranks(places, "text_to_video") if wanted(ours, theirs)]
    assert 0 < len(expected) < 21
    document = show(address)
    assert count(document).startswith(f"{len(expected)} of 21 queries")
    assert len(cards(document)) == min(20, len(expected))


def test_the_other_direction_sorted_by_loss(show: Show, places: list[Path]) -> None:
    gains = sorted(theirs["rank"] - ours["rank"] for ours, theirs in ranks(places, "video_to_text"))
    shown = cards(show("#direction=video_to_text&sort=loss"))
    assert len(shown) == 11
    told = [
        [1.0 if text == "✓ first" else float(text.removeprefix("✗ rank ")) for text in re.findall(r"<strong[^>]*>(.*?)</strong>", card)]
        for card in shown
    ]
    assert [theirs - ours for theirs, ours in told] == gains
    assert all(card.count("<img") == 1 and "It shows: clip" in card for card in shown)


def test_other_queries_are_a_set_of_their_own(show: Show) -> None:
    document = show("#set=1&outcome=nonsense&model=7")
    assert count(document).startswith("9 of 9 queries. Right one first: DGL-Linear (fewer, step 20)")
    models = re.search(r'<select id="model">(.*?)</select>', document)
    assert models is not None
    assert re.findall(r">([^<]+)</option>", models.group(1)) == ["DGL-Linear (fewer, step 20)"]
