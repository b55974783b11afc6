import json
import subprocess
import sys

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from dgl_scale.data.index import load_split
from dgl_scale.errors import DataError


def first_shard(folder):
    return sorted(folder.glob("*.tar"))[0]


def edit_parquet(folder, edit):
    path = first_shard(folder).with_suffix(".parquet")
    pyarrow.parquet.write_table(edit(pyarrow.parquet.read_table(path)), path)


def edit_list(folder, **values):
    content = json.loads((folder / "index.json").read_text())
    content["shardlist"][0].update(values)
    (folder / "index.json").write_text(json.dumps(content))


def test_arrays_hold_the_ok_samples_in_shard_order(make_split):
    folder = make_split([1, 0, 2, 5, 1, 1, 3], per_shard=3)
    index = load_split(str(folder))
    assert index.num_videos == 7 and index.total_captions == 13
    assert index.keys.tolist() == [f"video_{i}" for i in range(7)]
    assert index.video_ids.tolist() == [f"id video_{i}" for i in range(7)]
    assert index.shard.tolist() == [0, 0, 0, 1, 1, 1, 2]
    assert index.num_captions.tolist() == [1, 0, 2, 5, 1, 1, 3] and index.num_frames.tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert [path.name for path in index.shards] == [f"tiny-train-00000{n}.tar" for n in range(3)]
    assert index.sha256.shape == (7, 32) and index.num_captions.dtype == np.int64
    location = index.locate(4)
    assert location.key == "video_4" and location.shard == index.shards[1] and location.offset == index.offset[4] > 0


def test_digest_follows_the_shards_only(make_split, tmp_path):
    one, same, other = make_split([1, 2]), make_split([1, 2]), make_split([2, 1])
    assert load_split(one).digest == load_split(same).digest != load_split(other).digest
    moved = tmp_path / "moved"
    same.rename(moved)
    assert load_split(moved).digest == load_split(one).digest


def damage_missing_shard(folder):
    first_shard(folder).unlink()


def damage_shard_size(folder):
    with first_shard(folder).open("ab") as stream:
        stream.write(b"x")


def damage_no_parquet(folder):
    first_shard(folder).with_suffix(".parquet").unlink()


def damage_garbage_parquet(folder):
    first_shard(folder).with_suffix(".parquet").write_bytes(b"no parquet at all\n")


def damage_column(folder):
    edit_parquet(folder, lambda table: table.drop_columns(["offset"]))


def damage_null(folder):
    edit_parquet(
        folder, lambda table: table.set_column(table.column_names.index("size"), "size", pyarrow.nulls(len(table), pyarrow.int64()))
    )


def damage_hash(folder):
    edit_parquet(folder, lambda table: table.set_column(table.column_names.index("sha256"), "sha256", pyarrow.array(["abc"] * len(table))))


def damage_rows(folder):
    edit_parquet(folder, lambda table: table.slice(0, len(table) - 1))


def damage_offset(folder):
    edit_parquet(folder, lambda table: table.set_column(table.column_names.index("offset"), "offset", pyarrow.array([10**9] * len(table))))


def damage_index(folder):
    (folder / "index.json").unlink()


def damage_index_text(folder):
    (folder / "index.json").write_text("{")


def damage_index_shape(folder):
    (folder / "index.json").write_text('{"shardlist": [{"url": "a.tar"}]}')


def damage_no_shards(folder):
    (folder / "index.json").write_text('{"shardlist": []}')


def damage_path(folder):
    edit_list(folder, url="../tiny-train-000000.tar")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_missing_shard, "shard tiny-train-000000.tar of .* cannot be read .*build the shards again"),
        (damage_shard_size, r"tiny-train-000000.tar has \d+ bytes instead of \d+; remove it"),
        (damage_no_parquet, "tiny-train-000000.parquet, the index of its shard, is missing"),
        (damage_garbage_parquet, "Parquet files of .* not as expected"),
        (damage_column, "Parquet files of .* not as expected .*offset"),
        (damage_null, "Parquet files of .* not as expected .column size has no value in 2 rows"),
        (damage_hash, "Parquet files of .* not as expected"),
        (damage_rows, "tiny-train-000000.parquet has 1 samples, index.json says 2"),
        (damage_offset, "sample video_0 lies outside its shard"),
        (damage_index, "has no index.json, so it is no finished split"),
        (damage_index_text, "index.json is not valid JSON"),
        (damage_index_shape, "is no shard list: each entry of 'shardlist' needs url, nsamples, filesize, sha256"),
        (damage_no_shards, "lists no shards"),
        (damage_path, "leads out of"),
    ],
)
def test_damage_is_one_line_that_names_it(make_split, damage, message):
    folder = make_split([1, 1, 1], per_shard=2)
    damage(folder)
    with pytest.raises(DataError, match=message) as error:
        load_split(folder)
    assert "\n" not in str(error.value)


def test_no_folder_and_no_readable_sample(tmp_path, make_split):
    with pytest.raises(DataError, match=r"no folder of shards .*missing"):
        load_split(tmp_path / "missing")
    folder = make_split([1], per_shard=1)
    edit_parquet(folder, lambda table: table.slice(0, 1))
    edit_list(folder, nsamples=0)
    with pytest.raises(DataError, match="has no readable sample"):
        load_split(folder)


def test_reading_processes_do_not_load_pyarrow_or_open_clip():
    heavy = ["pyarrow", "open_clip", "torchvision", "webdataset"]
    check = f"import sys, dgl_scale.data.loader; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
