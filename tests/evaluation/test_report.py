"""The report is one well-formed file without outside references, every text in it is escaped, and it can be read by everybody."""

import base64
import hashlib
import itertools
import json
import re
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import pytest

from dgl_scale.evaluation.attention_picture import AttentionExample
from dgl_scale.evaluation.charts import Curve, Series
from dgl_scale.evaluation.metrics import METRICS, Difference
from dgl_scale.evaluation.report import Origin, Report, ReportRow, ReportTable, SideBySide, render_report, summarise, write_report

EVIL = "</script><script>alert('x')</script> & \"quoted\" <img src=x onerror=alert(1)> <!-- "
VOID = {"meta", "img", "circle", "line", "polyline", "path", "rect", "input"}


class Page(HTMLParser):
    """Collects tags, attributes and text, and checks that every tag is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.inside: dict[str, list[str]] = {"style": [], "script": []}
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
        if self._open and self._open[-1] in self.inside:
            self.inside[self._open[-1]].append(data)
        else:
            self.text += data

    def named(self, *names: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag in names]


def metrics(recall: float, *, interval: bool = True) -> dict[str, object]:
    values: dict[str, object] = {name: recall + i for i, name in enumerate(METRICS)}
    if interval:
        values["interval"] = {name: [recall - 5, recall + 5.5] for name in METRICS}
    return values


@pytest.fixture
def report() -> Report:
    pairs = {d: {"accuracy": 71.25, "interval": [60.0, 80.0]} for d in ("text_to_video", "video_to_text")} | {"pairs": 9}
    gain = dict.fromkeys(("text_to_video", "video_to_text"), Difference(42.25, 30.0, 50.5, 0.0004))
    plain = {d: {"R@1": 61.75} for d in ("text_to_video", "video_to_text")}
    rows = [
        ReportRow("Frozen CLIP", 0, 0.0, metrics(12.0), metrics(11.0)),
        ReportRow(
            f"DGL {EVIL}",
            277_000,
            0.0067,
            metrics(54.25),
            metrics(50.0, interval=False),
            gain,
            pairs,
            {"dual_softmax": plain},
            plain,
            EVIL,
            412.5,
            [400.0, 420.5],
        ),
    ]
    curves = [Curve(EVIL, "step", "loss", [Series(EVIL, [(0, 3.0), (10, 1.0)])]), Curve("empty", "step", "R@1", [Series("a", [])])]
    elsewhere = dict.fromkeys(("class tokens", "local prompts", "global prompts", "prefix prompts"), 0.1)
    attention = AttentionExample(EVIL, EVIL, 2.5, [(b"jpeg", 0.25), (b"jpeg", 0.75)], [(EVIL, 0.9)], elsewhere)
    side = SideBySide([EVIL, "b"], [(EVIL, [EVIL, "2"])])
    return Report(
        title=EVIL,
        summary=EVIL,
        tables=[ReportTable(EVIL, rows, "Frozen CLIP", {EVIL: 1234}, [EVIL])],
        notices=[EVIL],
        curves=curves,
        further_curves=curves,
        galleries=[{"name": EVIL}],
        attention={EVIL: [attention]},
        settings=side,
        configs={EVIL: EVIL},
        origins=[Origin(EVIL, {EVIL: EVIL}, [EVIL])],
        versions=side,
        commands=[EVIL],
    )


def test_every_text_is_escaped(report: Report) -> None:
    page = Page(render_report(report))
    assert [attributes.get("type") for attributes in page.named("script")] == ["application/json", None]
    assert json.loads(page.inside["script"][0])["sets"] == [{"name": EVIL}]
    assert "alert(" not in page.inside["script"][1]
    assert all(not name.startswith("on") and name != "style" for _, attributes in page.tags for name in attributes)
    assert [a["src"] for a in page.named("img") if not str(a["src"]).startswith("data:image/jpeg;base64,")] == []
    assert page.text.count(EVIL) >= 24


def test_nothing_is_fetched_and_only_the_pages_own_script_and_style_may_run(report: Report) -> None:
    html = render_report(report)
    page = Page(html)
    assert not {"link", "iframe", "object", "base", "embed"} & {tag for tag, _ in page.tags}
    assert not re.search(r"https?://|url\(|@import|fetch\(|XMLHttpRequest|innerHTML|eval\(", html)
    policy = next(str(a["content"]) for a in page.named("meta") if a.get("http-equiv") == "Content-Security-Policy")
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    for name, source in (("style-src", page.inside["style"][0]), ("script-src", page.inside["script"][1])):
        assert rules[name] == f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"
    assert "unsafe" not in policy


def test_figures_are_there(report: Report) -> None:
    page = Page(render_report(report))
    for text in (
        "54.2",
        "49.2–59.8",
        "71.2",
        "60.0–80.0",
        "277,000",
        "0.67%",
        "+42.2",
        "+30.0 to +50.5",
        "p < 0.001",
        "61.8",
        "1,234",
        "412.5 (400.0–420.5)",
    ):
        assert text in page.text, text
    assert sum(tag == "polyline" for tag, _ in page.tags) == 2


def test_tables_headings_pictures_and_controls_can_be_read_aloud(report: Report) -> None:
    page = Page(render_report(report))
    assert all(attributes.get("scope") for attributes in page.named("th"))
    assert len(page.named("caption")) == len(page.named("table"))
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert all(attributes["alt"] for attributes in page.named("img"))
    assert all(attributes.get("aria-label") for _, attributes in page.tags if attributes.get("role") in {"img", "region"})
    assert all(a.get("role") == "img" or a.get("aria-hidden") == "true" for a in page.named("svg"))
    labelled = {attributes.get("for") for attributes in page.named("label")} | {"theme"}
    assert {attributes["id"] for attributes in page.named("select", "input")} <= labelled
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {str(attributes["href"]).removeprefix("#") for attributes in page.named("a")}
    assert targets <= set(ids)


def test_a_report_of_a_table_alone(tmp_path: Path) -> None:
    row = ReportRow("DGL", 10, 0.5, metrics(3.0), metrics(4.0))
    write_report(tmp_path / "report.html", Report("title", "summary", [ReportTable("split", [row])]))
    page = Page((tmp_path / "report.html").read_text())
    assert "Twin pairs" not in page.text
    assert "Queries" not in page.text
    assert "against baseline" not in page.text
    assert "not recorded" in page.text


def test_summary(report: Report) -> None:
    rows = report.tables[0].rows
    assert summarise(rows, 1234).endswith(
        "finds the right clip first for 54.2% of 1,234 captions (95% interval 49.2 to 59.8), against 12.0% for Frozen CLIP, "
        "and trains 0.67% of its parameters."
    )
    assert summarise(rows[:1], 3) == "Frozen CLIP finds the right clip first for 12.0% of 3 captions (95% interval 7.0 to 17.5)."


STYLE = files("dgl_scale.evaluation").joinpath("templates/report.css").read_text()
COLOURS = {
    name: (light, dark or light)
    for name, light, dark in re.findall(r"--(\w[\w-]*): (?:light-dark\()?(#[0-9a-f]{6})(?:, (#[0-9a-f]{6})\))?;", STYLE)
}
# What is written in which colour on which ground; graphics need 3, text 4.5 (WCAG 2.2, AA).
TEXT = [
    *itertools.product(("ink", "quiet", "link", "right", "missed"), ("paper", "card")),
    *itertools.product(("ink", "quiet", "right"), ("right-paper",)),
    ("ink", "notice-paper"),
]
GRAPHICS = [
    *((f"s{i}", "paper") for i in range(6)),
    ("edge", "paper"),
    ("edge", "card"),
    ("focus", "paper"),
    ("focus", "card"),
    ("s1", "card"),
]


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_as_the_standard_computes_it() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_colours_have_enough_contrast(theme: int) -> None:
    low = [
        (ink, ground, round(contrast(COLOURS[ink][theme], COLOURS[ground][theme]), 2))
        for least, pairs in ((4.5, TEXT), (3.0, GRAPHICS))
        for ink, ground in pairs
        if contrast(COLOURS[ink][theme], COLOURS[ground][theme]) < least
    ]
    assert low == []


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_words_can_be_read_in_the_strongest_heat(theme: int) -> None:
    share = max(int(percent) for percent in re.findall(r"--mix: (\d+)%", STYLE)) / 100
    heat, card = COLOURS["heat"][theme], COLOURS["card"][theme]
    mixed = "#" + "".join(f"{round(share * int(heat[i : i + 2], 16) + (1 - share) * int(card[i : i + 2], 16)):02x}" for i in (1, 3, 5))
    assert contrast(COLOURS["ink"][theme], mixed) >= 4.5


def test_colours_are_named_once_and_only_named_ones_are_used() -> None:
    assert set(re.findall(r"#[0-9a-fA-F]{3,8}\b", STYLE)) == {colour for pair in COLOURS.values() for colour in pair}
    assert set(re.findall(r"var\(--([\w-]+)", STYLE)) <= {*COLOURS, "shade", "mix"}
