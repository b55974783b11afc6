"""`dgl-scale bench gather`: real ranks send what the formula says, at every number of them."""

import json
from pathlib import Path

import pytest

from dgl_scale.bench.command import main as bench


def test_ranks_send_what_the_formula_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "gather.json"
    assert bench(["gather", "--world", "4,2", "--pairs", "96", "--width", "64", "--steps", "2", "--json", str(report)]) == 0
    figures = json.loads(report.read_text())["figures"]
    assert [one["world_size"] for one in figures] == [2, 4]
    for one in figures:
        assert one["formula_bytes"] == (one["world_size"] - 1) * 96 * 2 * 64 * 4
        # gloo's own words: a header for each message, of which there is one to each other rank and kind of feature.
        assert 0 <= one["ours"]["sent_bytes"] - one["formula_bytes"] <= 500 * one["world_size"]
        assert one["limits"]["copy"]["sent_bytes"] == 0
    assert "x formula" in capsys.readouterr().out


@pytest.mark.parametrize(("words", "message"), [(["--world", "1,2"], "--world 1 has nothing to gather"), (["--world", "0"], "'0' is no")])
def test_wrong_usage_is_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = bench(["gather", *words])
    except SystemExit as ended:
        code = ended.code
    error = capsys.readouterr().err
    assert code == 2 and error.startswith("error: ") and message in error and error.count("\n") == 1
