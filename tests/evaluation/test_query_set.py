"""Evaluations are compared query by query, and only where they answer the same ones."""

from pathlib import Path

import numpy as np
import pytest

from dgl_scale.evaluation.metrics import paired_bootstrap
from dgl_scale.evaluation.query_set import group_by_queries
from dgl_scale.evaluation.run_report import load_evaluations
from tests.evaluation.conftest import make_sample, write_split
from tests.evaluation.evaluated_runs import write_run


@pytest.fixture
def places(tmp_path: Path, tiny_split: Path) -> list[Path]:
    write_run(tmp_path / "good", tiny_split, noise=0.2)
    write_run(tmp_path / "frozen", tiny_split, noise=2.0, latent_space=None)
    # The same videos in shards that were built in another order.
    write_run(tmp_path / "reordered", write_split(tmp_path / "other" / "test", [make_sample(i) for i in reversed(range(11))]), noise=1.0)
    write_run(tmp_path / "fewer", write_split(tmp_path / "fewer" / "test", [make_sample(i) for i in range(10)]), noise=1.0)
    return [tmp_path / name for name in ("good", "frozen", "reordered", "fewer")]


def test_other_queries_are_kept_apart_and_another_order_is_not_another_set(places: list[Path]) -> None:
    three, one = group_by_queries(load_evaluations(places))
    assert [evaluated.run_folder.name for evaluated in three.evaluations] == ["good", "frozen", "reordered"]
    assert (three.baseline, one.baseline) == (1, None)
    assert three.label == "21 captions of 11 videos, split test"
    for rows in three.answers.values():
        assert len({tuple((row["key"], row["caption"]) for row in own) for own in rows}) == 1
    assert group_by_queries(load_evaluations(places), places[2])[0].baseline == 2
    assert one.against_baseline(0) is None


def test_differences_are_paired_over_queries(places: list[Path]) -> None:
    queries = group_by_queries(load_evaluations(places))[0]
    assert queries.against_baseline(1) is None
    found = queries.against_baseline(2)
    assert found is not None
    for direction, rows in queries.answers.items():
        by_query = [{(row["key"], row["caption"]): row["rank"] for row in own} for own in rows]
        names = list(by_query[0])
        ours, theirs = (np.array([by_query[i][name] for name in names]) for i in (2, 1))
        expected = paired_bootstrap(ours, theirs, np.unique([key for key, _ in names], return_inverse=True)[1], samples=2000, seed=0)
        assert found[direction] == expected


def test_what_is_shown_first_is_the_newest_of_dgl_prompts(places: list[Path]) -> None:
    queries = group_by_queries(load_evaluations(places))[0]
    assert queries.evaluations[queries.shown].run_folder.name == "reordered"
    (alone,) = group_by_queries(load_evaluations([places[1]]))
    assert alone.shown == 0
