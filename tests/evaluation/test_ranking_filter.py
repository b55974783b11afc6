"""The filter decides as exact arithmetic does, bit for bit, on features made to mislead float32."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dgl_scale.evaluation import ranking_filter, ranks
from dgl_scale.evaluation.ranks import Ranking, rank_both_directions
from dgl_scale.evaluation.score_limits import error_bound
from dgl_scale.evaluation.unit_vectors import exact_unit
from tests.reference.exact_ranking import exact_ranking, full_matrix

KINDS = ("random", "duplicates", "constant", "zero", "near ties", "two clusters")


def world(kind: str, seed: int, num_texts: int, num_videos: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    text, video = random(num_texts, width), random(num_videos, width)
    if kind == "duplicates":
        words = random(5, width)
        text, video = (words[torch.randint(5, (size,), generator=generator)] for size in (num_texts, num_videos))
    elif kind == "constant":
        text, video = torch.ones(num_texts, width), 3 * torch.ones(num_videos, width)
    elif kind == "zero":
        text, video = torch.zeros(num_texts, width), torch.zeros(num_videos, width)
        video[::2] = random(width)
    elif kind == "near ties":
        # Scores differ by less, about as much, and more than float32 can tell.
        base = random(width)
        text, video = (
            base + random(size, width) * 10.0 ** -torch.randint(3, 9, (size, 1), generator=generator) for size in (num_texts, num_videos)
        )
    elif kind == "two clusters":
        centres = random(2, width)
        text = centres[torch.randint(2, (num_texts,), generator=generator)] + 1e-4 * text
        video = centres[torch.randint(2, (num_videos,), generator=generator)] + 1e-4 * video
    target = torch.cat([torch.arange(num_videos), torch.randint(num_videos, (num_texts - num_videos,), generator=generator)])
    return text, video, target[torch.randperm(num_texts, generator=generator)]


def assert_same(one: Ranking, other: Ranking) -> None:
    for direction in ("text_to_video", "video_to_text"):
        for name in ("ranks", "scores", "top_indices", "top_scores"):
            assert torch.equal(getattr(getattr(one, direction), name), getattr(getattr(other, direction), name)), (direction, name)


@contextmanager
def sizes(tile: int, units: int) -> Iterator[None]:
    """Small tiles and chunks, so that a small world has many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking_filter, "_TILE", tile)
        patch.setattr(ranks, "UNITS_AT_ONCE", units)
        yield


@settings(max_examples=120, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 10_000),
    num_videos=st.integers(1, 70),
    extra=st.integers(0, 40),
    tile=st.sampled_from((3, 8, 16, 512)),
    units=st.sampled_from((17, 1000)),
    top_k=st.sampled_from((1, 3, 200)),
    width=st.sampled_from((1, 6, 64)),
)
def test_bitwise_the_exact_ranking(
    kind: str, seed: int, num_videos: int, extra: int, tile: int, units: int, top_k: int, width: int
) -> None:
    text, video, target = world(kind, seed, num_videos + extra, num_videos, width)
    with sizes(tile, units):
        ranking = rank_both_directions(text, video, target, scale=100.0, block_size=9, top_k=top_k)
    assert_same(ranking, exact_ranking(text, video, target, scale=100.0, top_k=top_k))


@pytest.mark.parametrize("kind", KINDS)
def test_bitwise_the_exact_ranking_at_real_sizes(kind: str) -> None:
    text, video, target = world(kind, 1, 1500, 1100, 512)
    ranking = rank_both_directions(text, video, target, scale=14.3, block_size=9, top_k=10)
    assert_same(ranking, exact_ranking(text, video, target, scale=14.3, top_k=10))


def test_the_number_of_threads_changes_nothing() -> None:
    text, video, target = world("near ties", 2, 1300, 1200, 32)
    before = torch.get_num_threads()
    rankings = []
    try:
        for num_threads in (1, 4):
            torch.set_num_threads(num_threads)
            rankings.append(rank_both_directions(text, video, target, scale=100.0, block_size=9, top_k=4))
            assert torch.get_num_threads() == num_threads
    finally:
        torch.set_num_threads(before)
    assert_same(*rankings)


def test_products_of_fewer_bits_are_not_filtered(monkeypatch: pytest.MonkeyPatch) -> None:
    text, video, target = world("random", 3, 20, 20, 8)
    expected = exact_ranking(text, video, target, scale=1.0, top_k=2)
    monkeypatch.setattr(ranks, "filter_ranks", lambda *_, **__: pytest.fail("float32 products were taken for exact enough"))
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "medium")
    assert_same(rank_both_directions(text, video, target, scale=1.0, block_size=7, top_k=2), expected)


@pytest.mark.parametrize("width", [1, 3, 512, 4096])
def test_float32_products_stay_within_the_bound(width: int) -> None:
    generator = torch.Generator().manual_seed(width)
    signs = torch.randint(0, 2, (60, width), generator=generator) * 2.0 - 1
    for features in (
        torch.randn(60, width, generator=generator),
        signs,
        signs * torch.rand(60, 1, generator=generator),
        torch.ones(60, width),
    ):
        units = exact_unit(features)
        single = units.float() @ units.float().T
        assert float((single.double() - full_matrix(features, features, 1.0)).abs().max()) < error_bound(width)
