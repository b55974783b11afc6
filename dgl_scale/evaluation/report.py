"""The HTML report of retrieval runs: one file that needs no network, for wide and narrow screens, light and dark.

All inputs are plain values, so that any pipeline can fill them; `run_report` collects them from run folders.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from dgl_scale.evaluation.attention_picture import AttentionExample
from dgl_scale.evaluation.caption_categories import CATEGORIES
from dgl_scale.evaluation.charts import Curve, draw_mark, plot_curve
from dgl_scale.evaluation.metrics import METRICS, Difference
from dgl_scale.evaluation.retrieval import DIRECTIONS
from dgl_scale.files import write_text

DIRECTION_NAMES = {"text_to_video": "Text to video", "video_to_text": "Video to text"}
RERANK_NAMES = {"dual_softmax": "dual softmax", "qb_norm": "QB-Norm"}
_LOW_IS_GOOD = {"MdR", "MnR"}


@dataclass(frozen=True)
class ReportRow:
    """An evaluation in the table.

    Attributes:
        trained_share: trained parameters over all of the model's, 0 to 1.
        text_to_video: as in results.json: metrics by name and, optionally, their `interval`.
        video_to_text: likewise.
        against: by direction, R@1 minus that of the table's baseline.
        pair_accuracy: as in results.json, where there is any.
        rerank: as in results.json, where there is any.
        pessimistic: by direction, metrics that count the videos which are missing as misses.
        selection: how its checkpoint was chosen.
        recall_sum: RSum, where it is known.
        recall_sum_interval: its interval, likewise.
    """

    name: str
    trained_parameters: int
    trained_share: float
    text_to_video: Mapping[str, Any]
    video_to_text: Mapping[str, Any]
    against: Mapping[str, Difference] | None = None
    pair_accuracy: Mapping[str, Any] | None = None
    rerank: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)
    pessimistic: Mapping[str, Mapping[str, float]] | None = None
    selection: str = ""
    recall_sum: float | None = None
    recall_sum_interval: Sequence[float] | None = None


@dataclass(frozen=True)
class ReportTable:
    """Evaluations of the same queries.

    Attributes:
        label: what was asked, such as "298 captions of 200 videos, split test".
        baseline: name of the row that the others are compared with.
        coverage: counts of videos by name, such as annotated and found; empty where unknown.
        leakage: a sentence for each kind of thing that this split and another share; None where it was not looked for.
    """

    label: str
    rows: Sequence[ReportRow]
    baseline: str | None = None
    coverage: Mapping[str, int] = field(default_factory=dict)
    leakage: Sequence[str] | None = None

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics that a row has, in their order: those known here and any other that has an interval."""
        names: dict[str, None] = {}
        for row in self.rows:
            for values in (getattr(row, direction) for direction in DIRECTIONS):
                names.update(dict.fromkeys(name for name in values if name in METRICS or name in values.get("interval", {})))
        return list(names)

    def is_best(self, row: ReportRow, direction: str, metric: str) -> bool:
        """Whether no row has a better value: of the median and mean rank the lowest, of all else the highest."""
        values = [getattr(other, direction)[metric] for other in self.rows if metric in getattr(other, direction)]
        best = min(values) if metric in _LOW_IS_GOOD else max(values)
        return len(values) > 1 and getattr(row, direction)[metric] == best

    @property
    def reranked(self) -> list[tuple[str, Mapping[str, Mapping[str, float]]]]:
        """Name and figures by direction of each evaluation with each reranking."""
        return [
            (f"{row.name} + {RERANK_NAMES.get(kind, kind)}", figures)
            for row in self.rows
            for kind, figures in row.rerank.items()
            if any(direction in figures for direction in DIRECTIONS)
        ]

    @property
    def pessimistic(self) -> list[tuple[str, Mapping[str, Mapping[str, float]]]]:
        """Name and pessimistic figures by direction of each evaluation that has them."""
        return [(row.name, row.pessimistic) for row in self.rows if row.pessimistic]


@dataclass(frozen=True)
class SideBySide:
    """Values of several evaluations or runs: `rows` hold a label and a value for each of `names`."""

    names: Sequence[str]
    rows: Sequence[tuple[str, Sequence[str]]]


@dataclass(frozen=True)
class Origin:
    """Where an evaluation comes from: facts by name, and commands that repeat it."""

    name: str
    facts: Mapping[str, str]
    commands: Sequence[str] = ()


@dataclass(frozen=True)
class Report:
    """All that a report shows.

    Attributes:
        summary: one sentence; `summarise` makes one.
        notices: what a reader must know before comparing anything.
        tables: one for each set of queries.
        curves: of training.
        further_curves: those that are folded away.
        galleries: of `query_gallery`, one for each set of queries.
        attention: of some evaluations, by name, clips with what the model looks at.
        settings: config values in which the runs differ.
        configs: the whole config of each run, as text.
        commands: to repeat all, where `origins` do not say.
    """

    title: str
    summary: str
    tables: Sequence[ReportTable]
    notices: Sequence[str] = ()
    curves: Sequence[Curve] = ()
    further_curves: Sequence[Curve] = ()
    galleries: Sequence[Mapping[str, Any]] = ()
    attention: Mapping[str, Sequence[AttentionExample]] = field(default_factory=dict)
    settings: SideBySide | None = None
    configs: Mapping[str, str] = field(default_factory=dict)
    origins: Sequence[Origin] = ()
    versions: SideBySide | None = None
    commands: Sequence[str] = ()


def write_report(path: Path, report: Report) -> None:
    """Write the report as one HTML file, atomically.

    Raises:
        DglError: the file cannot be written.
    """
    write_text(path, render_report(report))


def render_report(report: Report) -> str:
    """The report as HTML; every text is escaped, and only the page's own style and script may run in it."""
    loader = PackageLoader("dgl_scale.evaluation")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(number=_number, share=_share, rank=_rank, jpeg_url=_jpeg_url, signed="{:+.1f}".format, p_value=_p_value)
    style, script = (loader.get_source(environment, name)[0] for name in ("report.css", "report.js"))
    return environment.get_template("report.html").render(
        report=report,
        style=Markup(style),  # noqa: S704 (our own file)
        script=Markup(script),  # noqa: S704 (our own file)
        style_hash=_source_hash(style),
        script_hash=_source_hash(script),
        gallery=Markup(embedded_json({"sets": report.galleries, "categories": CATEGORIES})),  # noqa: S704 (escaped there)
        directions=DIRECTION_NAMES,
        plots=[plot for plot in map(plot_curve, report.curves) if plot.lines],
        further_plots=[plot for plot in map(plot_curve, report.further_curves) if plot.lines],
        draw_mark=draw_mark,
    )


def embedded_json(value: Any) -> str:
    """JSON that may stand in an HTML script element: nothing in it ends the element or begins a comment."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


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


def _source_hash(source: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode("utf-8")).digest()).decode("ascii")


def _number(value: float, digits: int = 1) -> str:
    return f"{value:.{digits}f}"


def _rank(value: float) -> str:
    return f"{value:,.1f}".removesuffix(".0")


def _p_value(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def _share(share: float) -> str:
    percent = 100 * share
    return f"{percent:.1f}%" if percent >= 1 or percent == 0 else f"{percent:.2g}%"


def _jpeg_url(jpeg: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")
