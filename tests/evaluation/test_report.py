"""The report is one well-formed file without outside references, and every text in it is escaped."""

from html.parser import HTMLParser
from pathlib import Path

import pytest

from dgl_scale.evaluation.attention_picture import AttentionExample
from dgl_scale.evaluation.charts import Curve, Series
from dgl_scale.evaluation.metrics import METRICS
from dgl_scale.evaluation.report import Candidate, QueryExample, Report, ReportRow, render_report, summarise, write_report

EVIL = "<script>alert('x')</script> & \"quoted\" <img src=x onerror=alert(1)>"
VOID = {"meta", "img", "circle", "line", "polyline", "path"}


class Page(HTMLParser):
    """Collects tags, attributes and text, and checks that every tag is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def metrics(recall: float, *, interval: bool = True) -> dict[str, object]:
    values: dict[str, object] = {name: recall + i for i, name in enumerate(METRICS)}
    if interval:
        values["interval"] = {name: [recall - 5, recall + 5.5] for name in METRICS}
    return values


@pytest.fixture
def report() -> Report:
    pairs = {d: {"accuracy": 71.25, "interval": [60.0, 80.0]} for d in ("text_to_video", "video_to_text")} | {"pairs": 9}
    rows = [
        ReportRow("Frozen CLIP", 0, 0.0, metrics(12.0), metrics(11.0), None, "nothing chosen"),
        ReportRow(f"DGL {EVIL}", 277_000, 0.0067, metrics(54.25), metrics(50.0, interval=False), pairs, EVIL),
    ]
    wrong = Candidate("clip-1", b"\xff\xd8strip", 21.5, EVIL, False)
    right = Candidate("clip-2", b"\xff\xd8other", 20.25, "a red star", True)
    examples = [QueryExample(EVIL, 1.0, [right, wrong]), QueryExample("a blue ring", 7.5, [wrong, wrong], right)]
    curves = [Curve(EVIL, "step", "loss", [Series(EVIL, [(0, 3.0), (10, 1.0)])]), Curve("empty", "step", "R@1", [Series("a", [])])]
    elsewhere = dict.fromkeys(("class tokens", "local prompts", "global prompts", "prefix prompts"), 0.1)
    attention = AttentionExample(EVIL, EVIL, 2.5, [(b"jpeg", 0.25), (b"jpeg", 0.75)], [(EVIL, 0.9)], elsewhere)
    return Report(EVIL, EVIL, EVIL, rows, curves, examples, EVIL, [EVIL], {EVIL: EVIL}, {EVIL: EVIL}, [attention])


def test_every_text_is_escaped(report: Report) -> None:
    page = Page(render_report(report))
    names = {tag for tag, _ in page.tags}
    assert "script" not in names
    assert all(not name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert [a["src"] for tag, a in page.tags if tag == "img" and not str(a["src"]).startswith("data:image/jpeg;base64,")] == []
    assert page.text.count(EVIL) >= 15


def test_nothing_is_fetched(report: Report) -> None:
    html = render_report(report)
    page = Page(html)
    assert not {"link", "iframe", "object", "base"} & {tag for tag, _ in page.tags}
    assert "http://" not in html
    assert "https://" not in html
    assert "url(" not in html
    policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert str(policy).startswith("default-src 'none'")


def test_figures_and_marks_are_there(report: Report) -> None:
    page = Page(render_report(report))
    for text in ("54.2", "49.2–59.8", "71.2", "60.0–80.0", "277,000", "0.67%", "rank 7.5", "found first", "right clip", "21.50"):
        assert text in page.text, text
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 7
    assert all(attributes["alt"] for attributes in images)
    assert sum(attributes.get("class") == "candidate right" for _, attributes in page.tags) == 2
    assert sum(tag == "polyline" for tag, _ in page.tags) == 1
    assert all(attributes.get("aria-label") for tag, attributes in page.tags if attributes.get("role") == "img")


def test_a_report_of_a_table_alone(tmp_path: Path) -> None:
    row = ReportRow("DGL", 10, 0.5, metrics(3.0), metrics(4.0))
    write_report(tmp_path / "report.html", Report("title", "summary", "split", [row]))
    text = Page((tmp_path / "report.html").read_text()).text
    assert "Twin pairs" not in text
    assert "Queries" not in text


def test_summary(report: Report) -> None:
    assert summarise(report.rows, 1234).endswith(
        "finds the right clip first for 54.2% of 1,234 captions (95% interval 49.2 to 59.8), against 12.0% for Frozen CLIP, "
        "and trains 0.67% of its parameters."
    )
    assert summarise(report.rows[:1], 3) == "Frozen CLIP finds the right clip first for 12.0% of 3 captions (95% interval 7.0 to 17.5)."
