from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dgl_scale.errors import ConfigError
from shard_tools.annotations.validation import hold_out_fraction, hold_out_videos
from shard_tools.annotations.videos import AnnotatedVideo


def video(name: str, split: str = "train", source: str | None = None) -> AnnotatedVideo:
    return AnnotatedVideo(name, f"{name}.mp4", ("c",), split, extra={"source_video": source} if source else {})


def chosen(videos: list[AnnotatedVideo]) -> set[str]:
    return {video.video_id for video in videos if video.split == "validation"}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=30), st.integers(1, 20), st.integers(0, 3))
def test_exactly_so_many_whole_sources_are_held_out(sizes: list[int], count: int, seed: int) -> None:
    videos = [video(f"{source}-{i}", source=f"s{source}") for source, size in enumerate(sizes) for i in range(size)]
    videos += [video(f"single-{i}") for i in range(25)] + [video("other", "test")]
    result = hold_out_videos(videos, count, seed)
    assert [(old.video_id, old.captions) for old in videos] == [(new.video_id, new.captions) for new in result]
    assert len(chosen(result)) == count and result[-1].split == "test"
    splits = {str(new.extra.get("source_video", new.video_id)): set() for new in result}
    for new in result:
        splits[str(new.extra.get("source_video", new.video_id))].add(new.split)
    assert all(len(names) == 1 for names in splits.values())


def test_the_choice_depends_on_seed_and_names_only() -> None:
    videos = [video(f"v{i}") for i in range(100)]
    first = chosen(hold_out_videos(videos, 10, 0))
    assert first == chosen(hold_out_videos(videos[::-1], 10, 0)) != chosen(hold_out_videos(videos, 10, 1))
    few = chosen(list(hold_out_fraction(videos, 0.2, 0)))
    assert few == chosen(list(hold_out_fraction([*videos, *(video(f"w{i}") for i in range(50))], 0.2, 0))) & {v.video_id for v in videos}


def test_rows_of_one_video_count_once_and_stay_together() -> None:
    rows = [video(f"v{i % 10}") for i in range(30)]
    result = hold_out_videos(rows, 4, 0)
    assert len(chosen(result)) == 4 and sum(row.split == "validation" for row in result) == 12
    assert all(row.split == "validation" for row in result if row.video_id in chosen(result))


def test_a_fraction_is_about_that_fraction() -> None:
    counts = Counter(new.split for new in hold_out_fraction([video(f"v{i}") for i in range(5000)], 0.1, 0))
    # Four standard deviations of a binomial draw are 85 videos.
    assert abs(counts["validation"] - 500) < 85


def test_what_cannot_be_held_out_is_said() -> None:
    with pytest.raises(ConfigError, match="validation_videos 3: split train has only 3 videos"):
        hold_out_videos([video(f"v{i}") for i in range(3)], 3, 0)
    with pytest.raises(ConfigError, match="have a split validation already"):
        hold_out_videos([video("a", "validation"), video("b"), video("c")], 1, 0)
    with pytest.raises(ConfigError, match="have a split validation already"):
        list(hold_out_fraction([video("a", "validation"), video("b"), video("c")], 0.5, 0))
    with pytest.raises(ConfigError, match=r"too many clips each .* try 4"):
        hold_out_videos([video(f"{source}-{i}", source=source) for source in "ab" for i in range(4)], 5, 0)
    with pytest.raises(ConfigError, match="validation_fraction 0.001 moves 0 of 2 training videos"):
        list(hold_out_fraction([video("a"), video("b")], 0.001, 0))
