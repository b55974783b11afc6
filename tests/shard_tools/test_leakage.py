import json
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dgl_scale.data.index import load_split
from dgl_scale.errors import DataError
from dgl_scale.shards_config import FramesConfig, ShardsConfig
from shard_tools.annotations.videos import AnnotatedVideo
from shard_tools.bench_clips import encode_clip, footage
from shard_tools.fingerprints import Fingerprints, normalise_caption
from shard_tools.leakage import exclusions, find_leakage, main, read_fingerprints
from shard_tools.similar import similar_pairs
from tests.shard_tools.finished_build import finish_build

Frames = list[np.ndarray]


def crop(share: float) -> Callable[[Frames], Frames]:
    def apply(frames: Frames) -> Frames:
        height, width = frames[0].shape[:2]
        top, left = round(height * share / 2), round(width * share / 2)
        even = slice(top, top + (height - 2 * top) // 2 * 2), slice(left, left + (width - 2 * left) // 2 * 2)
        return [np.ascontiguousarray(frame[even]) for frame in frames]

    return apply


def scale(factor: float) -> Callable[[Frames], Frames]:
    def apply(frames: Frames) -> Frames:
        size = {name: round(side * factor / 2) * 2 for name, side in (("height", frames[0].shape[0]), ("width", frames[0].shape[1]))}
        return [av.VideoFrame.from_ndarray(frame, format="rgb24").to_ndarray(format="rgb24", **size) for frame in frames]

    return apply


# What happens to a video between two data sets, and the options of its new encoding.
CHANGES: dict[str, tuple[Callable[[Frames], Frames], dict[str, str]]] = {
    "low bitrate": (lambda frames: frames, {"crf": "36"}),
    "half the size": (scale(0.5), {"crf": "28"}),
    "brighter": (lambda frames: [np.clip(frame * 1.15 + 12.0, 0, 255).astype(np.uint8) for frame in frames], {}),
    "cropped by 5%": (crop(0.05), {}),
    "cropped by 10%": (crop(0.10), {}),
    "a quarter second later": (lambda frames: frames[6:], {}),
    "mirrored": (lambda frames: [np.ascontiguousarray(frame[:, ::-1]) for frame in frames], {}),
}


def different_clips() -> list[Frames]:
    """Parts of real footage, apart in space and time, that share no picture: 12 of them, two seconds each."""
    clips = []
    for path, height, step in ((footage()[0], 360, 120), (footage()[1], 136, 136)):
        with av.open(str(path)) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        width = 160 if height == 136 else 320
        for top in range(0, frames[0].shape[0] - height + 1, height):
            for left in range(0, frames[0].shape[1] - width + 1, width):
                for start in range(0, min(len(frames) - 50, step), step):
                    clips.append(
                        [
                            np.ascontiguousarray(frame[top : top + height : 2, left : left + width : 2])
                            for frame in frames[start : start + 50]
                        ]
                    )
    return clips


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real footage: its clips in train, each changed in every way in test, and one copied as it is."""
    root = tmp_path_factory.mktemp("leakage")
    videos = []
    for number, frames in enumerate(different_clips()):
        encode_clip(root / f"{number:02d}.mp4", iter(frames))
        videos.append(AnnotatedVideo(f"{number:02d}", f"{number:02d}.mp4", (f"Clip {number}, as it is.", "the same words"), "train"))
        for name, (change, options) in CHANGES.items():
            key = f"{number:02d}-{name.replace(' ', '_').replace('%', '')}"
            encode_clip(root / f"{key}.mp4", iter(change(frames)), **options)
            videos.append(AnnotatedVideo(key, f"{key}.mp4", (f"clip {number} as  it IS", name), "test"))
    videos.append(AnnotatedVideo("copy", "03.mp4", ("a copy",), "test"))
    output = root / "out"
    config = ShardsConfig(dataset="toy", format="folder", videos=str(root), output=str(output), frames=FramesConfig(short_side=112))
    return finish_build(videos, config, 40)


def test_changed_copies_are_found_and_different_videos_are_not(build: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(build), "--workers", "1"]) == 0
    rows = pyarrow.parquet.read_table(build / "leakage.parquet").to_pylist()
    between = [row for row in rows if row["split"] != row["other_split"]]
    assert [row for row in between if row["kind"] == "exact"] == [
        {"kind": "exact", "split": "test", "key": "copy", "other_split": "train", "other_key": "03", "share": 1.0}
    ]
    near = [(row["key"], row["other_key"]) for row in between if row["kind"] == "near"]
    right = [(key, other) for key, other in near if key[:2] == other]
    number = len(different_clips())
    recall = {name: sum(key.endswith(name.replace(" ", "_").replace("%", "")) for key, _ in right) / number for name in CHANGES}
    print(f"precision {len(right)} of {len(near)}, recall {recall}")
    assert number >= 12
    assert near == right, "different videos are called one"
    # Of two seconds, a quarter second is much: other frames are compared.
    assert recall.pop("mirrored") <= 0.2 and recall.pop("a quarter second later") >= 0.5
    assert min(recall.values()) >= 0.9
    text = capsys.readouterr().out
    assert "exact test/copy = train/03" in text and "of test, also in train" in text
    report = json.loads((build / "leakage.json").read_text())
    (captions,) = [entry for entry in report["captions"] if (entry["of"], entry["also_in"]) == ("test", "train")]
    assert captions["captions"] == captions["videos"] == number * len(CHANGES)


def test_mirror_images_on_request(build: Path) -> None:
    assert main([str(build), "--workers", "1", "--mirrored"]) == 0
    rows = pyarrow.parquet.read_table(build / "leakage.parquet").to_pylist()
    mirrored = {row["other_key"] for row in rows if row["key"].endswith("mirrored") and row["split"] != row["other_split"]}
    assert len(mirrored) >= 0.9 * len(different_clips()), f"{len(mirrored)} found"


def test_the_exclusions_are_what_training_leaves_out(build: Path, tmp_path: Path) -> None:
    file = tmp_path / "exclude.txt"
    assert main([str(build), "--workers", "1", "--write-exclusions", str(file), "--max-distance", "0"]) == 0
    excluded = file.read_text().split()
    whole, rest = load_split(build / "train"), load_split(build / "train", file)
    assert "03" in excluded and 0 < len(excluded) < whole.num_videos
    assert sorted(rest.keys) == sorted(set(whole.keys) - set(excluded))
    assert rest.digest != whole.digest
    for name in ("offset", "size", "num_captions", "num_frames"):
        of = dict(zip(whole.keys, getattr(whole, name), strict=True))
        assert getattr(rest, name).tolist() == [of[key] for key in rest.keys]
    file.write_text("03\nnobody\n")
    with pytest.raises(DataError, match=r"names 1 keys that .* does not have \('nobody' first\)"):
        load_split(build / "train", file)


def test_reading_in_processes_gives_the_same(build: Path) -> None:
    one, two = read_fingerprints(build, 1), read_fingerprints(build, 2)
    assert one.keys() == two.keys()
    for split in one:
        assert one[split].keys == two[split].keys
        assert np.array_equal(one[split].hashes, two[split].hashes) and np.array_equal(one[split].captions, two[split].captions)


def twin(hashes: np.ndarray, max_distance: int, min_share: float) -> list[list[int]]:
    """All pairs, frame by frame."""
    pairs = []
    for i in range(len(hashes)):
        for j in range(i + 1, len(hashes)):
            shares = []
            for one, other in ((hashes[i], hashes[j]), (hashes[j], hashes[i])):
                known = [int(frame) for frame in one if frame]
                shared = sum(any(f and (frame ^ int(f)).bit_count() <= max_distance for f in other) for frame in known)
                shares.append(shared / max(len(known), 1))
            if min(shares) >= min_share:
                pairs.append([i, j])
    return pairs


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), flips=st.integers(0, 4), blank=st.booleans())
def test_the_tables_find_what_comparing_all_finds(seed: int, flips: int, blank: bool) -> None:
    rng = np.random.default_rng(seed)
    hashes = rng.integers(1, 1 << 63, (40, 8), dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    for copy in range(30, 40):
        hashes[copy] = hashes[copy - 30]
        for _ in range(flips):
            hashes[copy] ^= np.uint64(1) << rng.integers(1, 64, 8, dtype=np.uint64)
    if blank:
        hashes[[3, 33], :3] = 0
    pairs, shares = similar_pairs(hashes, None, 12, 0.5)
    assert pairs.tolist() == twin(hashes, 12, 0.5) == [[i, i + 30] for i in range(10)]
    assert (shares >= 0.5).all()


def test_a_frame_that_everybody_has_stays_cheap() -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(1, 1 << 63, (5_000, 8), dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    hashes[:, 0] = 12345  # The same title in every video; half of the frames are needed for a match.
    hashes[-1] = hashes[0]
    pairs, _ = similar_pairs(hashes, None, 12, 0.5)
    assert pairs.tolist() == [[0, 4_999]]


@pytest.mark.parametrize(
    ("caption", "normal"),
    [
        ("A man, talking!", "a man talking"),
        ("  it's \t RED—blue ", "its red blue"),
        ("ＦＵＬＬ width", "full width"),
        ("第二。", "第二"),
        ("cafe\u0301", "café"),
        ("!?", ""),
    ],
)
def test_captions_lose_their_spelling(caption: str, normal: str) -> None:
    assert normalise_caption(caption) == normal


def test_every_copy_of_a_leaked_video_is_excluded() -> None:
    def prints(keys: list[str], content: list[int]) -> Fingerprints:
        blank, none = np.zeros((len(keys), 8), dtype=np.uint64), np.empty(0, dtype=np.uint64)
        return Fingerprints(keys, np.array(content, dtype=np.uint64), blank, blank, none, none.astype(np.int64))

    splits = {"train": prints(["a", "b", "c", "d"], [7, 7, 8, 7]), "validation": prints(["e"], [7])}
    assert exclusions(find_leakage(splits, mirrored=False), "train") == ["a", "b", "d"]


def test_what_is_no_build_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], build: Path) -> None:
    assert main([str(tmp_path)]) == 1
    assert main([str(build), "--workers", "1", "--write-exclusions", "x", "--from", "trian"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and "build.json" in lines[0] and "no split 'trian'; give --from one of test, train" in lines[1]
