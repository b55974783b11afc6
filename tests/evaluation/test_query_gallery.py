"""Which queries the page holds, what it says of each, and what it says where clips cannot be shown."""

import base64
import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dgl_scale.evaluation.query_gallery import query_gallery
from dgl_scale.evaluation.query_set import QuerySet, group_by_queries
from dgl_scale.evaluation.results import read_ranks
from dgl_scale.evaluation.run_report import load_evaluations
from tests.evaluation.conftest import make_sample, write_split
from tests.evaluation.evaluated_runs import write_run


@pytest.fixture
def split(tmp_path: Path) -> Path:
    return write_split(tmp_path / "shards" / "test", [make_sample(i) for i in range(11)])


@pytest.fixture
def queries(tmp_path: Path, split: Path) -> QuerySet:
    write_run(tmp_path / "frozen", split, noise=3.0, latent_space=None)
    write_run(tmp_path / "good", split, noise=0.4)
    return group_by_queries(load_evaluations([tmp_path / "frozen", tmp_path / "good"]))[0]


def told(content: dict[str, Any], direction: str, model: int) -> dict[tuple[str, str], tuple[float, list[tuple[str, bool]]]]:
    """By key and caption of a query: the rank and the names of what was found, as the page's script reads them."""
    names = [clip[0] for clip in content["clips"]] if direction == "text_to_video" else content["captions"]
    part = content[direction]
    return {
        (content["clips"][clip][0], content["captions"][caption]): (rank, [(names[i], bool(right)) for i, _, right in found])
        for (caption, clip, _), (rank, _, found) in zip(part["queries"], part["answers"][model], strict=True)
    }


def test_all_queries_of_all_evaluations_are_told(queries: QuerySet) -> None:
    content = query_gallery(queries)
    assert (content["evaluations"], content["baseline"], content["shown"]) == (["Frozen CLIP", "DGL-Linear (good, step 20)"], 0, 1)
    assert content["notes"] == []
    for model, evaluated in enumerate(queries.evaluations):
        to_video = told(content, "text_to_video", model)
        rows = read_ranks(evaluated.folder, "text_to_video")
        assert len(to_video) == len(rows) == 21
        for row in rows:
            top = [(key, key == row["key"]) for key in row["top_keys"][:5]]
            assert to_video[row["key"], row["caption"]] == (row["rank"], top)
        to_text = told(content, "video_to_text", model)
        assert {key: answer for (key, _), answer in to_text.items()} == {
            row["key"]: (row["rank"], [(c, k == row["key"]) for c, k in list(zip(row["top_captions"], row["top_keys"], strict=True))[:5]])
            for row in read_ranks(evaluated.folder, "video_to_text")
        }


def test_each_clip_is_kept_once_as_a_picture(queries: QuerySet) -> None:
    clips = query_gallery(queries)["clips"]
    assert sorted(key for key, *_ in clips) == [f"clip_{i:02d}" for i in range(11)]
    for key, caption, strip, width, height in clips:
        assert caption == f"clip {int(key[5:])} <script>alert(0)</script> & co"
        assert Image.open(io.BytesIO(base64.b64decode(strip))).size == (width, height)


def test_fewer_queries_are_spread_over_the_ranks_and_the_page_says_so(queries: QuerySet) -> None:
    content = query_gallery(queries, max_queries=5)
    assert content["notes"] == [
        "5 of 21 captions are here, chosen by rule and not by hand: at even distances in the order of their rank by "
        "DGL-Linear (good, step 20)."
    ]
    ranks = sorted(answer[0] for answer in content["text_to_video"]["answers"][1])
    every = sorted(row["rank"] for row in queries.answers["text_to_video"][1])
    assert (ranks[0], ranks[-1]) == (every[0], every[-1])
    assert ranks[2] in every[8:13]


def test_strips_stay_within_their_budget(queries: QuerySet) -> None:
    full = sum(len(clip[2]) for clip in query_gallery(queries)["clips"])
    content = query_gallery(queries, max_bytes=full * 3 // 4)
    assert sum(len(clip[2]) for clip in content["clips"]) <= full * 3 // 4
    assert 0 < len(content["text_to_video"]["queries"]) < 21
    assert content["notes"][0].split(" captions")[0] == f"{len(content['text_to_video']['queries'])} of 21"


def test_without_the_evaluated_shards_there_are_captions_but_no_clips(queries: QuerySet, split: Path) -> None:
    (split / "index.json").rename(split / "index.old")
    content = query_gallery(queries)
    assert content["notes"] == [
        f"No clips are shown: {split} has no index.json, so it is no finished split; build the shards again to complete it."
    ]
    assert len(content["text_to_video"]["queries"]) == 21
    assert {clip[2] for clip in content["clips"]} == {None}
    split.rename(split.with_name("moved"))
    assert query_gallery(queries)["notes"] == [f"No clips are shown: the shards are no longer at {split}."]
    write_split(split, [make_sample(i) for i in range(10)])
    assert query_gallery(queries)["notes"] == [f"No clips are shown: the shards at {split} have changed since the evaluation."]


def test_the_shards_of_any_of_the_evaluations_will_do(queries: QuerySet, split: Path, tmp_path: Path) -> None:
    write_run(
        tmp_path / "frozen", write_split(tmp_path / "copy" / "test", [make_sample(i) for i in range(11)]), noise=3.0, latent_space=None
    )
    split.rename(split.with_name("moved"))
    content = query_gallery(group_by_queries(load_evaluations([tmp_path / "frozen", tmp_path / "good"]))[0])
    assert content["notes"] == []
    assert all(clip[2] for clip in content["clips"])


def test_a_damaged_sample_costs_its_own_picture_only(queries: QuerySet, split: Path) -> None:
    tar = split / "tiny-test-000000.tar"
    content = bytearray(tar.read_bytes())
    content[1000] ^= 1
    tar.write_bytes(bytes(content))
    gallery = query_gallery(queries)
    (note,) = gallery["notes"]
    assert note.startswith("1 clips are not shown. The first: clip_00: sample clip_00 of shard")
    assert [clip[0] for clip in gallery["clips"] if clip[2] is None] == ["clip_00"]
