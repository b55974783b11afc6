"""Sums over pairs: those of the full matrix, and the same bits whatever the cut, the place of a row, and the threads."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from dgl_scale.evaluation import own_captions, pair_sums
from dgl_scale.evaluation.own_captions import own_caption_standing
from dgl_scale.evaluation.pair_sums import count_best, log_of_sums, log_sums, log_sums_of_both, partial_sums
from dgl_scale.evaluation.pairwise import in_order
from dgl_scale.evaluation.ranks import own_scores
from dgl_scale.evaluation.unit_vectors import exact_unit

CUTS = (1, 7, 8, 50, 100)


@pytest.fixture
def sides(monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, Tensor]:
    """Rows and columns of few distinct components, so that some tie; blocks of 8 columns."""
    monkeypatch.setattr(pair_sums, "BLOCK", 8)
    generator = torch.Generator().manual_seed(0)
    rows, columns = (torch.randint(-2, 3, (size, 6), generator=generator).float() + 0.1 for size in (50, 100))
    return rows, columns


@pytest.fixture
def other_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def cosines(rows: Tensor, columns: Tensor) -> Tensor:
    return exact_unit(rows) @ exact_unit(columns).T


def test_log_sums_are_those_of_the_full_matrix(sides: tuple[Tensor, Tensor]) -> None:
    found = log_sums(*sides, scale=100.0)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, (100.0 * cosines(*sides)).logsumexp(dim=1), rtol=1e-14, atol=0)


@pytest.mark.parametrize("cut", CUTS)
def test_no_cut_changes_a_bit_of_log_sums(sides: tuple[Tensor, Tensor], cut: int) -> None:
    rows, columns = sides
    whole = log_sums(rows, columns, scale=100.0)
    assert torch.equal(log_sums(rows, torch.split(columns, cut), scale=100.0), whole)
    assert torch.equal(torch.cat([log_sums(part, columns, scale=100.0) for part in torch.split(rows, cut)]), whole)


def test_the_order_of_columns_does_change_bits(sides: tuple[Tensor, Tensor]) -> None:
    rows, columns = sides
    assert not torch.equal(log_sums(rows, columns.flip(0), scale=3.0), log_sums(rows, columns, scale=3.0)), "cuts would show nothing"


@pytest.mark.usefixtures("other_threads")
def test_threads_change_no_bit_of_log_sums() -> None:
    generator = torch.Generator().manual_seed(1)
    rows, columns = torch.randn(1500, 8, generator=generator), torch.randn(2300, 8, generator=generator)
    found = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        found.append((log_sums(rows, columns, scale=30.0), *log_sums_of_both(rows, columns, scale=30.0)))
    assert all(map(torch.equal, *found))


def test_log_sums_of_both_sides_are_those_of_the_full_matrix(sides: tuple[Tensor, Tensor]) -> None:
    for scale in (1.0, 300.0):
        for found, expected in zip(log_sums_of_both(*sides, scale=scale), both_of_matrix(*sides, scale), strict=True):
            assert found.dtype == torch.float64
            torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)


def both_of_matrix(rows: Tensor, columns: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    scores = scale * cosines(rows, columns)
    return scores.logsumexp(dim=1), scores.logsumexp(dim=0)


def test_log_sums_at_the_largest_scale_of_both_do_not_overflow_where_all_are_opposed() -> None:
    rows = torch.tensor([[1.0, 2.0]]).expand(3, 2)
    for found in log_sums_of_both(rows, -rows, scale=pair_sums.MOST_SCALE_OF_BOTH):
        torch.testing.assert_close(found, torch.full((3,), -300.0, dtype=torch.float64) + torch.tensor(3.0).double().log())


@pytest.mark.parametrize("cut", CUTS)
def test_no_cut_changes_a_bit_of_log_sums_of_both(sides: tuple[Tensor, Tensor], cut: int) -> None:
    rows, columns = sides
    whole = log_sums_of_both(rows, columns, scale=100.0)
    assert all(map(torch.equal, log_sums_of_both(rows, torch.split(columns, cut), scale=100.0), whole))
    for blocks in (1, 2, 5):
        parts = (partial_sums(part, columns, scale=100.0) for part in torch.split(rows, blocks * pair_sums.BLOCK))
        assert all(map(torch.equal, log_of_sums(parts, scale=100.0), whole))


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("top_k", [1, 3, 200])
def test_the_best_are_counted_in_order_of_index_where_they_tie(sides: tuple[Tensor, Tensor], cut: int, top_k: int) -> None:
    queries, candidates = sides
    best = cosines(queries, candidates).argsort(dim=1, descending=True, stable=True)[:, :top_k]
    expected = torch.bincount(best.flatten(), minlength=100)
    assert torch.equal(count_best(queries, torch.split(candidates, cut), top_k=top_k), expected)
    assert torch.equal(sum(count_best(part, candidates, top_k=top_k) for part in torch.split(queries, cut)), expected)


@pytest.mark.parametrize("cut", CUTS)
def test_captions_stand_where_the_full_matrix_has_them(sides: tuple[Tensor, Tensor], cut: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_captions, "_VIDEOS_AT_ONCE", 3)
    video, text = sides
    target = torch.cat([torch.arange(50).flip(0), torch.randint(50, (50,), generator=torch.Generator().manual_seed(2))])
    scores = cosines(video, text)[target]
    own = scores.gather(1, torch.arange(100)[:, None])
    cosine = own_scores(text, video, target, scale=1.0)
    parts = torch.split(text, cut)
    found = [own_caption_standing(video[start : start + cut], start, parts, cosine, target) for start in range(0, 50, cut)]
    above, equal = in_order(found, 100)
    assert torch.equal(above, (scores > own).sum(dim=1))
    assert torch.equal(equal, (scores == own).sum(dim=1))
    assert int(equal.max()) > 1
