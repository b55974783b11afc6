"""The HTML report of retrieval runs: one file that needs no network, for wide and narrow screens, light and dark.

All inputs are plain values, so that any pipeline can fill them; `run_report` collects them from run folders.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from dgl_scale.evaluation.attention_picture import AttentionExample
from dgl_scale.evaluation.charts import Curve, plot_curve
from dgl_scale.evaluation.metrics import METRICS
from dgl_scale.evaluation.retrieval import DIRECTIONS
from dgl_scale.files import write_text

DIRECTION_NAMES = {"text_to_video": "Text to video", "video_to_text": "Video to text"}


@dataclass(frozen=True)
class ReportRow:
    """A model of the table.

    Attributes:
        trained_share: trained parameters over all of the model's, 0 to 1.
        text_to_video, video_to_text: as in results.json: metrics by name and, optionally, their `interval`.
        pair_accuracy: as in results.json, or None.
        note: how its checkpoint was chosen, or what else a reader must know.
    """

    name: str
    trained_parameters: int
    trained_share: float
    text_to_video: Mapping[str, Any]
    video_to_text: Mapping[str, Any]
    pair_accuracy: Mapping[str, Any] | None = None
    note: str = ""


@dataclass(frozen=True)
class Candidate:
    """A clip that was found for a query.

    Attributes:
        strip: JPEG of some of its frames side by side (`film_strip`).
        caption: what the clip really shows.
    """

    key: str
    strip: bytes
    score: float
    caption: str
    is_right: bool


@dataclass(frozen=True)
class QueryExample:
    """A caption and the clips that score best for it.

    Attributes:
        rank: of the right clip; a half where it ties.
        candidates: best first.
        right: the right clip where it is not among them.
    """

    caption: str
    rank: float
    candidates: Sequence[Candidate]
    right: Candidate | None = None


@dataclass(frozen=True)
class Report:
    """All that a report shows.

    Attributes:
        summary: one sentence; `summarise` makes one.
        split: what the figures are of, such as "240 captions of 200 held-out clips".
        examples_rule: how the examples were chosen, and of which model they are.
        commands: to repeat it, in order.
        coverage: figures of the shard build by name, empty where unknown.
        attention: clips with what the model looks at in them.
    """

    title: str
    summary: str
    split: str
    rows: Sequence[ReportRow]
    curves: Sequence[Curve] = ()
    examples: Sequence[QueryExample] = ()
    examples_rule: str = ""
    commands: Sequence[str] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    coverage: Mapping[str, Any] = field(default_factory=dict)
    attention: Sequence[AttentionExample] = ()


def write_report(path: Path, report: Report) -> None:
    """Write the report as one HTML file, atomically.

    Raises:
        DglError: the file cannot be written.
    """
    write_text(path, render_report(report))


def render_report(report: Report) -> str:
    """The report as HTML; every text is escaped."""
    environment = Environment(
        loader=PackageLoader("dgl_scale.evaluation"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(number=_number, share=_share, jpeg_url=_jpeg_url)
    style, _, _ = PackageLoader("dgl_scale.evaluation").get_source(environment, "report.css")
    return environment.get_template("report.html").render(
        report=report,
        style=Markup(style),  # noqa: S704 (our own file)
        metrics=METRICS,
        directions=DIRECTION_NAMES,
        best=_best_values(report.rows),
        has_pairs=any(row.pair_accuracy for row in report.rows),
        marks=_interval_marks(report.rows),
        plots=[plot for plot in map(plot_curve, report.curves) if plot.lines],
    )


def report_row(name: str, results: Mapping[str, Any]) -> ReportRow:
    """The table row of a results.json."""
    return ReportRow(
        name=name,
        trained_parameters=results["trained_parameters"],
        trained_share=results["trained_share"],
        text_to_video=results["text_to_video"],
        video_to_text=results["video_to_text"],
        pair_accuracy=results.get("pair_accuracy"),
        note=results["selection"],
    )


def summarise(rows: Sequence[ReportRow], captions: int) -> str:
    """One sentence: the model with the highest text-to-video R@1, next to the first one that trains nothing."""
    best = max(rows, key=lambda row: row.text_to_video["R@1"])
    frozen = next((row for row in rows if row.trained_parameters == 0), None)
    recall = best.text_to_video["R@1"]
    sentence = f"{best.name} finds the right clip first for {recall:.1f}% of {captions:,} captions"
    if "interval" in best.text_to_video:
        low, high = best.text_to_video["interval"]["R@1"]
        sentence += f" (95% interval {low:.1f} to {high:.1f})"
    if frozen is not None and frozen is not best:
        sentence += (
            f", against {frozen.text_to_video['R@1']:.1f}% for {frozen.name}, and trains {_share(best.trained_share)} of its parameters"
        )
    return sentence + "."


@dataclass(frozen=True)
class _Mark:
    """A row's R@1 and its interval in percent of the axis."""

    name: str
    direction: str
    value: float
    low: float
    high: float


def _interval_marks(rows: Sequence[ReportRow]) -> list[tuple[str, list[_Mark]]]:
    marks = []
    for row in rows:
        own = []
        for direction in DIRECTIONS:
            values = getattr(row, direction)
            low, high = values["interval"]["R@1"] if "interval" in values else (values["R@1"], values["R@1"])
            own.append(_Mark(DIRECTION_NAMES[direction], direction, values["R@1"], low, high))
        marks.append((row.name, own))
    return marks


def _best_values(rows: Sequence[ReportRow]) -> dict[tuple[str, str], float]:
    """The best value of each (direction, metric): highest recall, lowest rank."""
    best = {}
    for direction in DIRECTIONS:
        for metric in METRICS:
            values = [getattr(row, direction)[metric] for row in rows]
            if len(values) > 1:
                best[direction, metric] = max(values) if metric.startswith("R@") else min(values)
    return best


def _number(value: float, digits: int = 1) -> str:
    return f"{value:.{digits}f}"


def _share(share: float) -> str:
    percent = 100 * share
    return f"{percent:.1f}%" if percent >= 1 or percent == 0 else f"{percent:.2g}%"


def _jpeg_url(jpeg: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")
