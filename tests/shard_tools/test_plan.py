import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dgl_scale.data.samples import check_key
from dgl_scale.errors import ConfigError, DataError, DglError
from shard_tools.annotations.videos import AnnotatedVideo
from shard_tools.failures import SampleFailure, Status
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


@pytest.mark.parametrize("seed", [None, 0])
def test_rows_of_a_video_are_joined_wherever_they_stand(seed: int | None) -> None:
    rows = [AnnotatedVideo(f"v{i % 700}", f"{i % 700}.mp4", (f"caption {i}",), "train") for i in range(2100)]
    rows.append(AnnotatedVideo("silent", "s.mp4", (), "train"))
    plan = plan_shards(rows, "d", 300, seed, None)
    found = [planned for shard in plan for planned in shard.samples]
    assert plan.num_videos == len(found) == 701 and [len(shard.samples) for shard in plan] == [300, 300, 101]
    by_id = {planned.key: planned.video for planned in found}
    assert all(by_id[f"v{i}"].captions == tuple(f"caption {j}" for j in range(i, 2100, 700)) for i in range(700))
    assert by_id["silent"].problem is not None and by_id["silent"].problem.status is Status.NO_CAPTION
    if seed is None:
        assert [planned.key for planned in found] == [*(f"v{i}" for i in range(700)), "silent"]


@pytest.mark.parametrize("seed", [None, 0])
def test_buckets_too_large_for_memory_are_spread_again(seed: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [AnnotatedVideo(f"v{i % 900}", f"{i % 900}.mp4", (f"caption {i}",), "train") for i in range(2700)]
    plan = plan_shards(rows, "d", 100, seed, None)
    monkeypatch.setattr("shard_tools.plan._MAX_BUCKET_ROWS", 2)
    spread = plan_shards(rows, "d", 100, seed, None)
    assert list(spread) == list(plan) and spread.annotations_sha256 == plan.annotations_sha256


def test_a_plan_keeps_every_value() -> None:
    problem = SampleFailure(Status.BAD_SEGMENT, "row 1: no time")
    videos = [
        AnnotatedVideo("a\u2028b", "odd \udc80 name.mp4", ("第二", "third 🎬"), "x", 1.5, 2.25, {"n": [1, {"m": None}], "f": 0.1}),
        AnnotatedVideo("bad", "bad.mp4", ("c",), "x", problem=problem),
    ]
    (shard,) = plan_shards(videos, "d", 10, None, None)
    first, second = (planned.video for planned in shard.samples)
    assert first == videos[0]
    assert second.problem is not None and (second.problem.status, second.problem.message) == (problem.status, problem.message)


def test_signed_addresses_are_the_same_annotations() -> None:
    one, other = (AnnotatedVideo("a", f"https://me:{key}@host/a.mp4?signature={key}", ("c",), "train") for key in ("1", "2"))
    plans = [plan_shards([video], "d", 1, 0, None) for video in (one, other)]
    assert plans[0].annotations_sha256 == plans[1].annotations_sha256
    assert plans[1][0].samples[0].video.path == other.path


def test_memory_does_not_grow_with_the_videos() -> None:
    program = "from shard_tools.bench_plan import measure; import json, sys; print(json.dumps(measure(int(sys.argv[1]))))"
    small, large = (
        json.loads(subprocess.run([sys.executable, "-c", program, str(rows)], capture_output=True, check=True).stdout)
        for rows in (20_000, 80_000)
    )
    assert (small["rows"], small["shards"]) == (20_000, 21) and large["shards"] == 81
    # As Python objects the 60,000 more take 60 MiB and more.
    assert large["peak_mib"] - small["peak_mib"] < 30


def test_a_full_scratch_folder_is_one_line(tmp_path: Path) -> None:
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)], capture_output=True).returncode:
        pytest.skip("this user cannot mount a small file system")
    try:
        with pytest.raises(DglError, match=r"cannot use the scratch folder: No space left on device; set storage\.scratch"):
            plan_shards(videos(20_000), "d", 1000, 0, None, str(tmp_path))
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


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
