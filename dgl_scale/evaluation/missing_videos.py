"""Videos that were annotated and are not in the shards: what the figures would be at worst."""

from collections.abc import Mapping

from dgl_scale.evaluation.metrics import metrics_with_missing
from dgl_scale.evaluation.ranks import Ranking
from dgl_scale.evaluation.retrieval import DIRECTIONS


def count_missing(coverage: Mapping[str, int], num_videos: int) -> int:
    """Annotated videos that are not among the `num_videos` evaluated ones: without a file, or with one that failed."""
    return max(0, coverage.get("annotated", num_videos) - num_videos)


def pessimistic_metrics(ranking: Ranking, num_missing: int) -> dict[str, dict[str, float]]:
    """Metrics of both directions if every query of a missing video had found its right candidate last.

    Nobody knows how many captions a missing video has: as many as the others on average is assumed. That a missing video
    would also have been one more competitor for the others cannot be counted.

    Args:
        ranking: among the videos that are there.
        num_missing: videos.
    """
    num_captions, num_videos = len(ranking.text_to_video.ranks), len(ranking.video_to_text.ranks)
    missing_captions = round(num_missing * num_captions / num_videos)
    # Of a direction: how many queries are missing, and the last place among all candidates.
    worst = {DIRECTIONS[0]: (missing_captions, num_videos + num_missing), DIRECTIONS[1]: (num_missing, num_captions + missing_captions)}
    return {
        name: metrics_with_missing(getattr(ranking, name).ranks.numpy(), missing_queries=count, worst_rank=last)
        for name, (count, last) in worst.items()
    }
