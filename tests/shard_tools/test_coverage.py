import pytest

from shard_tools.coverage import Coverage, count_coverage, coverage_by_split, low_coverage
from shard_tools.finished import ShardSummary


def shard(split: str, **statuses: int) -> ShardSummary:
    return ShardSummary("x", split, statuses, 0, None)


SHARDS = [shard("train", ok=90, missing=7), shard("test", ok=8, missing=1, truncated=1), shard("train", missing=2, bad_path=1)]


def test_counts_by_split_and_together() -> None:
    assert coverage_by_split(SHARDS) == {"test": Coverage(10, 1, 1), "train": Coverage(100, 9, 1)}
    assert count_coverage(SHARDS) == Coverage(110, 10, 2)
    assert str(coverage_by_split(SHARDS)["train"]) == "100 annotated, 91 found (91%), 9 missing, 1 found but failed"
    assert count_coverage([]).fraction() == 1.0


@pytest.mark.parametrize(("required", "splits"), [(None, []), (0.9, []), (0.905, ["test"]), (0.92, ["test", "train"])])
def test_low_coverage_names_the_splits_and_figures(required: float | None, splits: list[str]) -> None:
    low = low_coverage(coverage_by_split(SHARDS), required)
    assert [split for split in ("test", "train") if low and f"split {split} has" in low] == splits
    if required == 0.905:
        assert low == "split test has 9 of 10 annotated videos (90%); require_coverage is 90.5%"


def test_a_share_is_never_rounded_up_to_all() -> None:
    assert "(99.99%)" in str(Coverage(100_000, 1, 0)) and "(100%)" in str(Coverage(100_000, 0, 0))
