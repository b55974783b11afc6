"""Recall is what it says; on vectors in clusters FAISS finds most of what exact search finds, and all of it in all cells."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dgl_scale.bench import faiss_search
from dgl_scale.bench.faiss_search import TOP_K, _Best, _pick, clustered_vectors, measure_search, recall
from dgl_scale.bench.ranking import main


def test_recall_counts_what_is_in_the_same_row() -> None:
    best = np.array([[1, 2], [3, 4]])
    assert recall(best[:, ::-1], best) == 1.0
    assert recall(np.array([[2, 9], [1, 2]]), best) == 0.25


def test_vectors_are_units_and_the_same_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faiss_search, "_VECTORS_AT_ONCE", 300)
    blocks = list(clustered_vectors(1000, 8))
    assert [len(block) for block in blocks] == [300, 300, 300, 100]
    assert all(np.allclose(np.linalg.norm(block, axis=1), 1, atol=1e-6) for block in blocks)
    assert all((one == other).all() for one, other in zip(blocks, clustered_vectors(1000, 8), strict=True))


def test_more_cells_find_more_and_all_cells_find_all(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss")
    monkeypatch.setattr(faiss_search, "_PROBES", (1, 8, 2 * 40))
    search = measure_search(1600, 16, 100)
    recalls = [one.recall for one in search.approximations]
    assert search.cells == 80
    assert recalls == sorted(recalls)
    assert 0.1 < recalls[0] < 1.0
    # Two ways to sum in float32 may differ on a tie.
    assert recalls[-1] > 0.99


def test_the_best_of_all_blocks_are_those_of_all_vectors() -> None:
    scores = np.random.default_rng(0).permutation(7 * 100).reshape(7, 100).astype(np.float32)
    best = _Best(7)
    for start in range(0, 100, 30):
        block = scores[:, start : start + 30]
        rows = np.argsort(-block, axis=1)[:, :TOP_K]
        best.add(np.take_along_axis(block, rows, 1), rows, start)
    assert (best.indices == np.argsort(-scores, axis=1)[:, :TOP_K]).all()


def test_vectors_are_picked_in_the_order_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faiss_search, "_VECTORS_AT_ONCE", 300)
    rows = np.array([999, 3, 300, 3])
    assert (_pick(1000, 8, rows) == np.concatenate(list(clustered_vectors(1000, 8)))[rows]).all()


def test_codes_find_less_of_the_best_than_whole_vectors_and_nearly_all_among_a_hundred(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss")
    monkeypatch.setattr(faiss_search, "_PROBES", (2 * 40,))
    (whole,), (codes,) = measure_search(1600, 16, 100).approximations, measure_search(1600, 16, 100, code_bytes=4).approximations
    assert 0.2 < codes.recall < 0.95 < whole.recall
    assert codes.recall_rescored > 0.95


@pytest.mark.parametrize(
    ("vectors", "message"), [("1000", "--faiss-code-bytes 3 does not divide --faiss-dim 8"), ("255", "needs at least 256 vectors, got 255")]
)
def test_codes_that_cannot_be_are_refused(vectors: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("faiss")
    code_bytes = "3" if vectors == "1000" else "4"
    assert main(["--faiss", "--faiss-vectors", vectors, "--faiss-dim", "8", "--faiss-code-bytes", code_bytes]) == 2
    assert message in capsys.readouterr().err


def test_the_command_prints_recall_and_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("faiss")
    threads = torch.get_num_threads()
    arguments = ["--faiss", "--faiss-vectors", "900", "--faiss-dim", "8", "--faiss-queries", "20", "--json", str(tmp_path / "figures.json")]
    assert main(arguments) == 0
    assert "900 clustered vectors x 8, kept whole, best 10 of 20 queries" in capsys.readouterr().out
    assert json.loads((tmp_path / "figures.json").read_text())["search"]["vectors"] == 900
    assert torch.get_num_threads() == threads


def test_without_faiss_a_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert main(["--faiss", "--faiss-vectors", "100"]) == 2
    assert "pip install 'dgl-scale[faiss]'" in capsys.readouterr().err
