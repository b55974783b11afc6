"""CSV reads back to the very numbers; LaTeX escapes what names may hold."""

import csv
import io

from dgl_scale.evaluation.report import ReportRow, ReportTable
from dgl_scale.evaluation.report_export import tables_csv, tables_latex

RECALL = {"R@1": 100 / 3, "MdR": 2.0, "interval": {"R@1": [20.0, 45.5]}}
ROWS = [
    ReportRow("Frozen, 50% & co_1", 0, 0.0, {"R@1": 10.0, "MdR": 4.0}, {"R@1": 9.0}),
    ReportRow("DGL \\ {x} ~^#$", 35_584, 0.02, RECALL, RECALL, recall_sum=412.5, recall_sum_interval=[400.0, 420.0]),
]
TABLES = [ReportTable("21 captions of 11 videos, split test", ROWS)]


def test_csv_reads_back() -> None:
    read = list(csv.DictReader(io.StringIO(tables_csv(TABLES))))
    assert [(row["model"], row["direction"]) for row in read] == [
        (name, direction) for name in ("Frozen, 50% & co_1", "DGL \\ {x} ~^#$") for direction in ("text_to_video", "video_to_text")
    ]
    assert float(read[2]["R@1"]) == 100 / 3
    assert (read[2]["R@1 low"], read[2]["R@1 high"], read[2]["MdR low"]) == ("20.0", "45.5", "")
    assert (read[1]["R@1"], read[1]["MdR"]) == ("9.0", "")
    assert [(row["RSum"], row["RSum low"], row["RSum high"]) for row in read[1:3]] == [("", "", ""), ("412.5", "400.0", "420.0")]
    assert {row["queries"] for row in read} == {"21 captions of 11 videos, split test"}


def test_latex() -> None:
    lines = tables_latex(TABLES).splitlines()
    assert lines[1] == r"\begin{tabular}{l r rr rr}"
    assert lines[6] == r"Frozen, 50\% \& co\_1 & 0 & 10.0 & 4.0 & 9.0 & -- \\"
    bold = r"\textbf{33.3} {\scriptsize [20.0, 45.5]}"
    name = r"DGL \textbackslash{} \{x\} \textasciitilde{}\textasciicircum{}\#\$"
    assert lines[7] == rf"{name} & 35,584 & {bold} & \textbf{{2.0}} & {bold} & 2.0 \\"
    assert lines[-1] == r"\end{tabular}"
