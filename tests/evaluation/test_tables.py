"""What is printed beside the figures."""

from typing import Any

import pytest

from dgl_scale.evaluation.metrics import METRICS
from dgl_scale.evaluation.tables import print_results

FIGURES = dict.fromkeys(METRICS, 12.5)
RESULTS: dict[str, Any] = {
    "text_to_video": {**FIGURES, "interval": {name: [10.0, 15.0] for name in METRICS}},
    "video_to_text": {**FIGURES, "interval": {name: [10.0, 15.0] for name in METRICS}},
    "rerank": {"qb_norm": {"text_to_video": FIGURES, "beta": 20.0, "beta_chosen_on": "validation", "k": 1, "theta": 1, "bank": 9}},
    "queries": 4,
    "videos": 2,
    "split": "test",
    "split_folder": "/no/shards/test",
    "trained_parameters": 0,
    "trained_share": 0.0,
    "checkpoint": "frozen",
    "selection": "nothing was chosen",
    "seconds": 1.0,
}


@pytest.fixture(autouse=True)
def _usual_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def test_nothing_is_cut_at_eighty_columns(capsys: pytest.CaptureFixture[str]) -> None:
    figures = dict.fromkeys(METRICS, 12345.6)
    wide = {**figures, "interval": {name: [10000.0, 15000.0] for name in METRICS}}
    print_results({**RESULTS, "text_to_video": wide, "pessimistic": {"text_to_video": dict.fromkeys(METRICS, 100.0)}})
    printed = capsys.readouterr().out
    assert printed.count("12345.6 (10000.0-15000.0)") == len(METRICS)
    assert "text-to-video + pessimistic" in printed
    assert "…" not in printed


def test_plain_results_say_nothing_of_what_nobody_knows(capsys: pytest.CaptureFixture[str]) -> None:
    print_results(RESULTS)
    printed = capsys.readouterr().out
    assert printed.count("+ qb norm") == 1  # of text to video only
    assert not any(word in printed for word in ("coverage", "leakage", "transfer", "pessimistic"))


def test_coverage_leakage_and_transfer_stand_beside_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    facts = {
        "coverage": {"annotated": 1000, "found": 990, "missing": 10, "failed": 1},
        "pessimistic": {"text_to_video": {**FIGURES, "R@1": 9.9}, "video_to_text": FIGURES},
        "leakage": {
            "video_pairs": [{"splits": ["test", "train"], "exact": 1, "near": 2}],
            "captions": [{"of": "test", "also_in": "train", "captions": 3, "videos": 2}],
        },
        "transfer": True,
        "trained_on": {"dataset": "msrvtt", "run": "one"},
        "dataset": "didemo",
    }
    print_results({**RESULTS, **facts})
    printed = capsys.readouterr().out
    assert "coverage: 1,000 annotated, 990 found, 10 missing, 1 failed" in printed
    assert "+ pessimistic" in printed and "9.9" in printed
    assert "leakage: 1 equal and 2 nearly equal videos in train." in printed
    assert "leakage: 3 captions of 2 videos are captions of train too." in printed
    assert "zero-shot transfer: trained on msrvtt (run one), evaluated on didemo" in printed
