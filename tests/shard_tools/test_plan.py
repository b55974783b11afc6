from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dgl_scale.data.samples import check_key
from dgl_scale.errors import ConfigError, DataError
from shard_tools.annotations.videos import AnnotatedVideo
from shard_tools.plan import ShardPlan, plan_shards, sample_key

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=120)


def videos(number: int, split: str = "train") -> list[AnnotatedVideo]:
    return [AnnotatedVideo(f"{split}{i}", f"{i}.mp4", ("a caption",), split) for i in range(number)]


def keys(plans: Sequence[ShardPlan]) -> list[list[str]]:
    return [[planned.key for planned in plan.samples] for plan in plans]


@pytest.mark.parametrize("video_id", ["a.b", "../x", "..", "a/b/c", "", "视频", "🎬", "a b", "x" * 200, "-", "a\x00b"])
def test_an_unsafe_id_gets_a_safe_key_of_its_own(video_id: str) -> None:
    key = sample_key(video_id)
    check_key(key)
    assert len(key) <= 80
    assert key != sample_key(video_id + "!")


def test_a_safe_id_is_its_own_key() -> None:
    assert sample_key("video7010_a-B") == "video7010_a-B"
    assert sample_key("cats/001.v2").startswith("cats-001-v2-")


@settings(max_examples=100, deadline=None)
@given(TEXT, TEXT)
def test_keys_are_safe_and_distinct(one: str, other: str) -> None:
    check_key(sample_key(one))
    assert (sample_key(one) == sample_key(other)) == (one == other)


def test_two_ids_of_one_key_are_refused() -> None:
    taken = sample_key("a/b")
    with pytest.raises(DataError, match="both give the sample key"):
        plan_shards([AnnotatedVideo(name, "x.mp4", ("c",), "train") for name in ("a/b", taken)], "d", 10, 0, None)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 5))
def test_every_video_is_in_one_shard_and_shards_are_full(number: int, size: int, seed: int) -> None:
    plans = plan_shards(videos(number), "d", size, seed, None)
    assert sorted(key for shard in keys(plans) for key in shard) == sorted(f"train{i}" for i in range(number))
    assert all(len(plan.samples) == size for plan in plans[:-1])
    assert [plan.name for plan in plans] == [f"d-train-{i:06d}" for i in range(-(-number // size))]


def test_order_depends_on_seed_and_keys_only() -> None:
    members = videos(50)
    assert keys(plan_shards(members, "d", 10, 3, None)) == keys(plan_shards(members[::-1], "d", 10, 3, None))
    assert keys(plan_shards(members, "d", 10, 3, None)) != keys(plan_shards(members, "d", 10, 4, None))
    assert keys(plan_shards(members, "d", 50, None, None)) == [[video.video_id for video in members]]


def test_another_split_changes_nothing() -> None:
    alone = plan_shards(videos(30), "d", 10, 0, None)
    both = plan_shards(videos(15, "test") + videos(30), "d", 10, 0, None)
    assert [plan for plan in both if plan.split == "train"] == list(alone)
    assert list(plan_shards(videos(15, "test") + videos(30), "d", 10, 0, ["train", "train"])) == list(alone)


def test_an_unknown_split_is_named() -> None:
    with pytest.raises(ConfigError, match="no video of split 'val'; the annotations have train"):
        plan_shards(videos(3), "d", 10, 0, ["val"])


def test_the_digest_sees_every_field() -> None:
    base = AnnotatedVideo("a", "a.mp4", ("c",), "train", 0.0, None, {"x": 1})
    others = [
        AnnotatedVideo("b", "a.mp4", ("c",), "train", 0.0, None, {"x": 1}),
        AnnotatedVideo("a", "b.mp4", ("c",), "train", 0.0, None, {"x": 1}),
        AnnotatedVideo("a", "a.mp4", ("d",), "train", 0.0, None, {"x": 1}),
        AnnotatedVideo("a", "a.mp4", ("c",), "test", 0.0, None, {"x": 1}),
        AnnotatedVideo("a", "a.mp4", ("c",), "train", 1.0, None, {"x": 1}),
        AnnotatedVideo("a", "a.mp4", ("c",), "train", 0.0, 2.0, {"x": 1}),
        AnnotatedVideo("a", "a.mp4", ("c",), "train", 0.0, None, {"x": 2}),
    ]
    assert len({plan_shards([video], "d", 1, 0, None).annotations_sha256 for video in [base, *others]}) == 1 + len(others)
