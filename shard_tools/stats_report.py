"""The drawing of `shards stats`: one HTML page without scripts or other files, histograms as SVG."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

_BINS = 24
_WIDTH, _HEIGHT, _BASE = 300, 110, 90
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 1080px; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a; background: #fff }
h1 { font-size: 1.4rem } h2 { font-size: 1.1rem; margin-top: 2rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .2rem .8rem .2rem 0; text-align: right } th:first-child, td:first-child { text-align: left } th { font-weight: 600 }
.charts { display: flex; flex-wrap: wrap; gap: 1rem } figure { margin: 0 } figcaption { font-size: .85rem; color: #555 }
svg text { font-size: 11px; fill: #555 }
"""


def render_report(
    title: str,
    summaries: Mapping[str, Mapping[str, Any]],
    values: Mapping[str, Mapping[str, Sequence[float]]],
    quantities: Mapping[str, tuple[str, str]],
) -> str:
    """The page.

    Args:
        title: the dataset's name.
        summaries: of each split, as `summarise` gives them.
        values: of each split, the numbers of each quantity.
        quantities: name to (what it is, unit).
    """
    parts = [f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{escape(title)}</title><style>{_STYLE}</style>"]
    parts.append(f"<h1>{escape(title)}</h1>{_totals(summaries)}")
    for split, summary in summaries.items():
        parts.append(f"<h2>{escape(split)}</h2><div class='charts'>")
        for name, (text, unit) in quantities.items():
            if values[split][name]:
                label = f"{text}, {unit}" if unit else text
                parts.append(f"<figure>{histogram(values[split][name])}<figcaption>{escape(label)}</figcaption></figure>")
        parts.append(f"</div>{_counts('failure', summary['failures'])}{_counts('frame size', summary['sizes'])}")
    return "\n".join(parts) + "</html>\n"


def histogram(values: Sequence[float]) -> str:
    """An SVG of up to 24 bars; the highest half percent of the values is in the last one."""
    array = np.asarray(values, dtype=np.float64)
    low, high = float(array.min()), float(np.sort(array)[-1 - len(array) // 200])
    whole = bool((array == np.round(array)).all())
    # Whole numbers get bars of whole width, or some bars would be empty for no reason.
    step = max((high - low + whole) / _BINS, 1e-9)
    step = max(np.ceil(step), 1.0) if whole else step
    number = max(int(np.ceil((high - low + whole) / step)), 1)
    counts = np.bincount(np.clip(((array - low) / step).astype(np.int64), 0, number - 1), minlength=number)
    bar = _WIDTH / number
    bars = [
        f"<rect x='{place * bar:.1f}' y='{_BASE - height:.1f}' width='{max(bar - 1, 0.5):.1f}' height='{height:.1f}' fill='#3b6ea8'>"
        f"<title>{_number(low + place * step)} and more: {count:,}</title></rect>"
        for place, (count, height) in enumerate(zip(counts.tolist(), (counts / counts.max() * (_BASE - 14)).tolist(), strict=True))
    ]
    last = _number(low + number * step - whole) + ("+" if array.max() >= low + number * step else "")
    return (
        f"<svg width='{_WIDTH}' height='{_HEIGHT}' role='img'>{''.join(bars)}"
        f"<line x1='0' y1='{_BASE}' x2='{_WIDTH}' y2='{_BASE}' stroke='#999'/>"
        f"<text x='0' y='{_HEIGHT - 6}'>{_number(low)}</text><text x='{_WIDTH}' y='{_HEIGHT - 6}' text-anchor='end'>{last}</text>"
        f"<text x='{_WIDTH}' y='10' text-anchor='end'>highest bar {int(counts.max()):,}</text></svg>"
    )


def _totals(summaries: Mapping[str, Mapping[str, Any]]) -> str:
    head = "<tr><th>split<th>shards<th>samples<th>failed<th>hours<th>frames<th>captions<th>GB</tr>"
    rows = [
        f"<tr><td>{escape(split)}<td>{summary['shards']:,}<td>{summary['samples']:,}<td>{summary['failed']:,}"
        f"<td>{_total(summary, 'duration') / 3600:,.2f}<td>{_total(summary, 'frames'):,.0f}<td>{_total(summary, 'captions'):,.0f}"
        f"<td>{_total(summary, 'bytes') / 1e9:,.3f}</tr>"
        for split, summary in summaries.items()
    ]
    return f"<table>{head}{''.join(rows)}</table>"


def _total(summary: Mapping[str, Any], name: str) -> float:
    return float(summary[name]["total"]) if name in summary else 0.0


def _counts(what: str, counts: Mapping[str, int]) -> str:
    rows = "".join(f"<tr><td>{escape(name)}<td>{number:,}</tr>" for name, number in counts.items())
    return f"<p><table><tr><th>{what}<th>videos</tr>{rows}</table>" if rows else ""


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 or value == round(value) else f"{value:.3g}"
