from pathlib import Path

import pyarrow.parquet
import pytest

from dgl_scale.errors import DataError
from shard_tools.failures import Status
from shard_tools.ledger import Ledger, LedgerRow, read_ledger, write_ledger

LEDGER = Ledger(
    (
        LedgerRow("a", "a", Status.OK, None, 0, 2048, 3, 2, 1.5, "0" * 64),
        LedgerRow("b-1", "b/1", Status.TIMEOUT, "not decoded within 1 s"),
    ),
    10240,
    "f" * 64,
)


def test_a_ledger_comes_back_and_its_bytes_are_stable(tmp_path: Path) -> None:
    for name in ("one.parquet", "other.parquet"):
        write_ledger(tmp_path / name, LEDGER)
    assert read_ledger(tmp_path / "one.parquet") == LEDGER
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "other.parquet").read_bytes()
    assert LEDGER.num_samples == 1 and LEDGER.statuses == {"ok": 1, "timeout": 1}


def test_the_columns_are_the_documented_ones(tmp_path: Path) -> None:
    write_ledger(tmp_path / "l.parquet", Ledger((LEDGER.rows[1],)))
    names = ["key", "video_id", "status", "error", "offset", "size", "n_frames", "n_captions", "duration", "sha256", "decoder"]
    assert pyarrow.parquet.read_schema(tmp_path / "l.parquet").names == names
    assert read_ledger(tmp_path / "l.parquet").tar_sha256 is None


def test_what_is_no_ledger_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no ledger"):
        read_ledger(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("text")
    with pytest.raises(DataError, match="is no ledger"):
        read_ledger(tmp_path / "text.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"key": ["a"]}), tmp_path / "other.parquet")
    with pytest.raises(DataError, match="is no ledger"):
        read_ledger(tmp_path / "other.parquet")


def test_a_ledger_of_before_the_decoder_was_recorded(tmp_path: Path) -> None:
    write_ledger(tmp_path / "new.parquet", LEDGER)
    table = pyarrow.parquet.read_table(tmp_path / "new.parquet")
    pyarrow.parquet.write_table(table.drop_columns(["decoder"]), tmp_path / "old.parquet")
    assert read_ledger(tmp_path / "old.parquet") == LEDGER
    pyarrow.parquet.write_table(table.drop_columns(["key"]), tmp_path / "no_key.parquet")
    with pytest.raises(DataError, match="is no ledger"):
        read_ledger(tmp_path / "no_key.parquet")
