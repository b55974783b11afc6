"""What comes out of the store is what went in, to the bit, or nothing."""

import os
from pathlib import Path

import pytest
import torch

from dgl_scale.evaluation.feature_store import Entry, FeatureStore

KEY, OTHER = "ab" + 62 * "0", "cd" + 62 * "1"
FEATURES = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
ENTRY = Entry({"features": FEATURES, "tokens": torch.arange(6).view(3, 2)}, {"t": ["é", None]})


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore(tmp_path / "store", 1 << 20)


def the_file(tmp_path: Path) -> Path:
    (path,) = (tmp_path / "store").glob("*/*")
    return path


def test_what_was_written_is_read(store: FeatureStore) -> None:
    assert store.read(KEY) is None
    store.write(KEY, ENTRY)
    found = store.read(KEY)
    assert found is not None
    assert found.notes == ENTRY.notes
    assert found.tensors.keys() == ENTRY.tensors.keys()
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in ENTRY.tensors.items())
    assert store.read(OTHER) is None


def test_any_flipped_byte_is_found(store: FeatureStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store.write(KEY, ENTRY)
    path = the_file(tmp_path)
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        found = store.read(KEY)
        # White space that pads the header holds nothing.
        assert found is None or whole[place : place + 1] == b" ", place
        assert (found is None) == ("are damaged" in capsys.readouterr().err)
    for content in (b"", whole[:-1], whole[:7], whole + b"0"):
        path.write_bytes(content)
        assert store.read(KEY) is None
        assert not path.exists()


def test_a_file_under_another_name_is_refused(store: FeatureStore, tmp_path: Path) -> None:
    store.write(KEY, ENTRY)
    (tmp_path / "store" / "cd").mkdir()
    the_file(tmp_path).rename(tmp_path / "store" / "cd" / f"{OTHER}.safetensors")
    assert store.read(OTHER) is None


def test_what_was_used_least_recently_goes_first(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path / "store", 0)
    keys = [f"{i:02x}" + 62 * "0" for i in range(4)]
    for key in keys:
        store.write(key, ENTRY)
    files = [tmp_path / "store" / key[:2] / f"{key}.safetensors" for key in keys]
    for age, path in enumerate(files):
        os.utime(path, (1000 - age, 1000 - age))
    assert store.read(keys[3]) is not None  # the oldest, used just now
    size = files[0].stat().st_size
    assert FeatureStore(tmp_path / "store", 2 * size).trim() == 2 * size
    assert [path.exists() for path in files] == [True, False, False, True]
    assert FeatureStore(tmp_path / "store", 2 * size).trim() == 0


def test_a_store_that_cannot_be_written_says_so_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "store").write_text("a file")
    store = FeatureStore(tmp_path / "store", 1 << 20)
    store.write(KEY, ENTRY)
    store.write(OTHER, ENTRY)
    assert store.read(KEY) is None
    assert store.trim() == 0
    assert capsys.readouterr().err.count("features are not kept") == 1
