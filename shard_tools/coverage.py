"""How many of the annotated videos a build has found, and how many of those became samples."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from shard_tools.failures import Status
from shard_tools.finished import ShardSummary


@dataclass(frozen=True)
class Coverage:
    """Counts of videos, of a split or of all.

    Attributes:
        annotated: by the annotations.
        missing: of these, without a file.
        failed: of these, with a file and without a sample.
    """

    annotated: int
    missing: int
    failed: int

    @property
    def found(self) -> int:
        """Annotated videos whose file is there."""
        return self.annotated - self.missing

    def fraction(self) -> float:
        """Share of the annotated videos that were found; 1 if none is annotated."""
        return self.found / self.annotated if self.annotated else 1.0

    def as_json(self) -> dict[str, int]:
        """The counts, for `build.json`."""
        return {"annotated": self.annotated, "found": self.found, "missing": self.missing, "failed": self.failed}

    def __str__(self) -> str:
        share = _percent(self.fraction())
        return f"{self.annotated} annotated, {self.found} found ({share}), {self.missing} missing, {self.failed} found but failed"


def count_coverage(shards: Iterable[ShardSummary]) -> Coverage:
    """The coverage of these shards together."""
    statuses: Counter[str] = Counter()
    for shard in shards:
        statuses.update(shard.statuses)
    missing = statuses[Status.MISSING.value]
    return Coverage(statuses.total(), missing, statuses.total() - missing - statuses[Status.OK.value])


def coverage_by_split(shards: Iterable[ShardSummary]) -> dict[str, Coverage]:
    """The coverage of each split, by name."""
    members: dict[str, list[ShardSummary]] = {}
    for shard in shards:
        members.setdefault(shard.split, []).append(shard)
    return {split: count_coverage(members[split]) for split in sorted(members)}


def low_coverage(by_split: dict[str, Coverage], required: float | None) -> str | None:
    """What is wrong with the splits of which less than `required` was found; None if nothing is."""
    if required is None:
        return None
    low = [
        f"split {split} has {coverage.found} of {coverage.annotated} annotated videos ({_percent(coverage.fraction())})"
        for split, coverage in by_split.items()
        if coverage.fraction() < required
    ]
    return f"{'; '.join(low)}; require_coverage is {_percent(required)}" if low else None


def _percent(fraction: float) -> str:
    # Two decimals and never rounded up: 9,999 of 10,000 must not read 100%.
    return f"{int(fraction * 10_000 + 1e-6) / 100:g}%"
