"""Paired comparison: figures by hand, p values by all permutations, queries that do not match refused."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from dgl_scale.errors import DataError
from dgl_scale.evaluation.compare import compare_evaluations
from dgl_scale.evaluation.compare_command import main
from dgl_scale.evaluation.metrics import paired_bootstrap, permutation_test

CAPTIONS = {
    "v1": ["a cat left of a dog", "a cat and a dog"],
    "v2": ["a cup falls and then breaks into many small pieces on a hard kitchen floor"],
}


def write_evaluation(folder: Path, ranks: dict[str, list[float]], captions: dict[str, list[str]] = CAPTIONS) -> Path:
    """Rows as an evaluation writes them."""
    keys = [key for key, own in captions.items() for _ in own]
    rows: list[dict[str, Any]] = [
        {"direction": "text_to_video", "key": key, "caption": caption, "rank": rank}
        for key, caption, rank in zip(keys, itertools.chain(*captions.values()), ranks["text_to_video"], strict=True)
    ]
    rows += [
        {"direction": "video_to_text", "key": key, "caption": None, "rank": rank}
        for key, rank in zip(captions, ranks["video_to_text"], strict=True)
    ]
    filler = {"score": 1.0, "top_keys": ["v1"], "top_captions": ["x"], "top_scores": [1.0]}
    folder.mkdir()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{**row, **filler} for row in rows]), folder / "ranks.parquet")
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    a = write_evaluation(tmp_path / "a", {"text_to_video": [1.0, 2.0, 1.0], "video_to_text": [1.0, 1.0]})
    b = write_evaluation(tmp_path / "b", {"text_to_video": [3.0, 1.0, 7.0], "video_to_text": [1.0, 4.0]})
    shards = tmp_path / "shards"
    shards.mkdir()
    pyarrow.parquet.write_table(pyarrow.table({"key": ["v1", "v2"], "duration": [8.0, 45.0]}), shards / "test-000000.parquet")
    (a / "results.json").write_text(json.dumps({"split_folder": str(shards)}))
    return a, b


def test_won_and_lost_in_all_and_by_category(folders: tuple[Path, Path]) -> None:
    result = compare_evaluations(*folders, samples=200, seed=0)
    figures = result["text_to_video"]
    assert (figures["queries"], figures["won"], figures["lost"], figures["tied"]) == (3, 2, 1, 0)
    assert figures["R@1"]["a"] == pytest.approx(200 / 3)
    assert figures["R@1"]["difference"] == pytest.approx(100 / 3)
    assert figures["R@5"]["difference"] == pytest.approx(100 / 3)
    assert {name: one["queries"] for name, one in figures["categories"].items()} == {
        "short": 2,
        "long": 1,
        "time": 1,
        "place": 1,
        "up to 10 s": 2,
        "over 30 s": 1,
    }
    assert (figures["categories"]["place"]["won"], figures["categories"]["place"]["lost"]) == (1, 0)
    assert result["video_to_text"]["won"] == 1
    assert result["video_to_text"]["tied"] == 1
    assert compare_evaluations(folders[0] / "ranks.parquet", folders[1], samples=200, seed=0) == result


def test_order_of_rows_does_not_matter(folders: tuple[Path, Path]) -> None:
    before = compare_evaluations(*folders, samples=50, seed=0)
    table = pyarrow.parquet.read_table(folders[1] / "ranks.parquet")
    pyarrow.parquet.write_table(table.take(list(range(len(table)))[::-1]), folders[1] / "ranks.parquet")
    assert compare_evaluations(*folders, samples=50, seed=0) == before


def test_the_command_prints_text_json_and_markdown(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(folder) for folder in folders]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "text-to-video" in text
    assert "+33.3" in text
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == compare_evaluations(*folders, samples=2000, seed=0)
    assert main([*arguments, "--markdown"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in rows}) == 1


def test_other_queries_and_no_evaluations_are_one_line(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_evaluation(tmp_path / "c", {"text_to_video": [1.0, 2.0], "video_to_text": [1.0]}, {"v1": ["a cat", "a dog"]})
    damaged = tmp_path / "d"
    damaged.mkdir()
    (damaged / "ranks.parquet").write_text("no parquet")
    for second, message in (
        (other, "A and B answered other text-to-video queries (3 and 2; only B has 'v1 a cat')"),
        (tmp_path, "is no evaluation: give a folder that holds ranks.parquet"),
        (damaged, "cannot read"),
    ):
        assert main([str(folders[0]), str(second)]) == 1
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_permutation_test_is_that_of_all_permutations() -> None:
    generator = np.random.default_rng(1)
    groups = np.concatenate([np.arange(8), generator.integers(0, 8, 10)])
    a, b = generator.integers(1, 3, 18).astype(float), generator.integers(1, 4, 18).astype(float)
    gain = (a <= 1).astype(float) - (b <= 1)
    observed = abs(gain.sum())
    sums = [abs(sum(sign * gain[groups == g].sum() for g, sign in enumerate(signs))) for signs in itertools.product((-1, 1), repeat=8)]
    expected = np.mean([total >= observed for total in sums])
    assert permutation_test(a, b, groups, samples=20_000, seed=0) == pytest.approx(expected, abs=0.015)
    assert permutation_test(a, a, groups, samples=50, seed=0) == 1
    with pytest.raises(DataError, match="18 queries with 17"):
        permutation_test(a, b[:17], groups, samples=5, seed=0)


def test_recall_at_k_is_what_is_compared() -> None:
    a, b = np.array([4.0, 4.0, 9.0]), np.array([6.0, 1.0, 9.0])
    assert paired_bootstrap(a, b, np.arange(3), samples=20, seed=0, recall_at=5).difference == pytest.approx(100 / 3)
    assert paired_bootstrap(a, b, np.arange(3), samples=20, seed=0).difference == pytest.approx(-100 / 3)
