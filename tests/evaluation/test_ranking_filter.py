"""The filter decides as exact arithmetic does, bit for bit, on features made to mislead float32."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dgl_scale.evaluation import ranking_filter, ranks
from dgl_scale.evaluation.bfloat16_trial import is_bfloat16_faster
from dgl_scale.evaluation.ranking_filter import filter_ranks
from dgl_scale.evaluation.ranks import Ranking, own_scores, rank_both_directions
from dgl_scale.evaluation.tile_queries import Direction
from dgl_scale.evaluation.unit_vectors import integer_unit
from tests.reference.exact_ranking import exact_ranking, full_matrix

KINDS = ("random", "duplicates", "constant", "zero", "near ties", "two clusters", "trained", "opposite", "halfway")


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
    elif kind == "halfway":
        # All components are halfway between two bfloat16, and round the same way: scores are off by nearly the whole bound.
        signs = torch.randint(0, 2, (num_videos, width), generator=generator) * 2.0 - 1
        video = signs * (1 + 2.0**-8)
    target = torch.cat([torch.arange(num_videos), torch.randint(num_videos, (num_texts - num_videos,), generator=generator)])
    target = target[torch.randperm(num_texts, generator=generator)]
    if kind == "halfway":
        text = video[target] * (1 + 2.0**-7 * torch.randint(0, 3, (num_texts, width), generator=generator))
    elif kind == "trained":
        text = video[target] + 0.5 * text
    elif kind == "opposite":
        # The right score is the lowest, and negative.
        text = 0.5 * text - video[target]
    return text, video, target


def assert_same(one: Ranking, other: Ranking) -> None:
    for direction in ("text_to_video", "video_to_text"):
        for name in ("ranks", "scores", "top_indices", "top_scores"):
            assert torch.equal(getattr(getattr(one, direction), name), getattr(getattr(other, direction), name)), (direction, name)


@contextmanager
def products(*, bfloat16: bool | None, tile: int | None = None, units: int | None = None) -> Iterator[list[bool]]:
    """Tiles tried in bfloat16 or not, and of what sizes, so that a small world has many; says which of them it decided."""
    decided = []
    meet = ranking_filter._meet_roughly

    def watch(*arguments: Any) -> bool:
        decided.append(meet(*arguments))
        return decided[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranks, "filter_ranks", partial(filter_ranks, bfloat16=bfloat16))
        patch.setattr(ranking_filter, "_meet_roughly", watch)
        if tile and units:
            patch.setattr(ranking_filter, "_TILE", tile)
            patch.setattr(ranks, "UNITS_AT_ONCE", units)
        yield decided


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
    bfloat16=st.booleans(),
)
def test_bitwise_the_exact_ranking(
    kind: str, seed: int, num_videos: int, extra: int, tile: int, units: int, top_k: int, width: int, bfloat16: bool
) -> None:
    text, video, target = world(kind, seed, num_videos + extra, num_videos, width)
    with products(bfloat16=bfloat16, tile=tile, units=units):
        ranking = rank_both_directions(text, video, target, scale=100.0, block_size=9, top_k=top_k)
    assert_same(ranking, exact_ranking(text, video, target, scale=100.0, top_k=top_k))


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_bitwise_the_exact_ranking_at_real_sizes(kind: str, bfloat16: bool) -> None:
    text, video, target = world(kind, 1, 1500, 1100, 512)
    with products(bfloat16=bfloat16):
        ranking = rank_both_directions(text, video, target, scale=14.3, block_size=9, top_k=10)
    assert_same(ranking, exact_ranking(text, video, target, scale=14.3, top_k=10))


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("one_thread")
def test_bitwise_the_exact_ranking_in_tiles_of_the_full_size(kind: str, bfloat16: bool) -> None:
    text, video, target = world(kind, 6, 3 * ranking_filter._TILE - 100, 2 * ranking_filter._TILE - 30, 16)
    with products(bfloat16=bfloat16):
        ranking = rank_both_directions(text, video, target, scale=100.0, block_size=9, top_k=4)
    assert_same(ranking, exact_ranking(text, video, target, scale=100.0, top_k=4))


@pytest.mark.parametrize("kind", ["trained", "halfway", "opposite"])
def test_bitwise_the_exact_ranking_where_bfloat16_decides_tiles(kind: str) -> None:
    text, video, target = world(kind, 4, 701, 700, 128)
    with products(bfloat16=True, tile=64, units=300) as decided:
        ranking = rank_both_directions(text, video, target, scale=100.0, block_size=9, top_k=1)
    assert_same(ranking, exact_ranking(text, video, target, scale=100.0, top_k=1))
    # The right candidates of opposite features rank last, so that all scores pass.
    assert any(decided) == (kind != "opposite")


@pytest.mark.parametrize("bfloat16", [False, True])
def test_one_query_among_many(bfloat16: bool) -> None:
    video = torch.randn(2000, 32, generator=torch.Generator().manual_seed(5))
    own = own_scores(video[:1], video, torch.tensor([0]), scale=2.0)
    directions = Direction(own.numpy(), np.full(1, -np.inf), 3), Direction(np.ones(2000), np.full(2000, -np.inf), 1)
    found, _ = filter_ranks(
        integer_unit(video[:1]), integer_unit(video), scale=2.0, to_video=directions[0], to_text=directions[1], bfloat16=bfloat16
    )
    scores = full_matrix(video[:1], video, 2.0)[0]
    assert (found.greater[0], found.equal[0]) == (0, 1)
    assert found.top_indices[0].tolist() == scores.topk(3).indices.tolist()


def test_neither_the_number_of_threads_nor_bfloat16_changes_anything() -> None:
    before = torch.get_num_threads()
    for kind in ("near ties", "trained"):
        text, video, target = world(kind, 2, 1300, 1200, 32)
        rankings = []
        try:
            for num_threads, bfloat16 in ((1, False), (4, False), (1, True), (4, True)):
                torch.set_num_threads(num_threads)
                with products(bfloat16=bfloat16, tile=100, units=1000):
                    rankings.append(rank_both_directions(text, video, target, scale=100.0, block_size=9, top_k=4))
                assert torch.get_num_threads() == num_threads
        finally:
            torch.set_num_threads(before)
        for other in rankings[1:]:
            assert_same(rankings[0], other)


@pytest.mark.parametrize(
    ("faster", "large", "kind"), [(True, 1000, "trained"), (False, 1000, "trained"), (True, 10**6, "trained"), (True, 1000, "random")]
)
def test_bfloat16_is_used_where_it_is_faster_and_the_ranking_large(
    faster: bool, large: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, video, target = world(kind, 3, 600, 500, 64)
    monkeypatch.setattr(ranking_filter, "is_bfloat16_faster", lambda: faster)
    monkeypatch.setattr(ranking_filter, "_LARGE", large)
    with products(bfloat16=None, tile=64, units=1000) as decided:
        ranking = rank_both_directions(text, video, target, scale=1.0, block_size=9, top_k=1)
    assert_same(ranking, exact_ranking(text, video, target, scale=1.0, top_k=1))
    assert any(decided) == (faster and large == 1000 and kind == "trained")


def test_the_trial_answers_and_stays_with_it() -> None:
    before = torch.get_num_threads()
    assert is_bfloat16_faster() is is_bfloat16_faster()
    assert torch.get_num_threads() == before


def test_products_of_fewer_bits_are_not_filtered(monkeypatch: pytest.MonkeyPatch) -> None:
    text, video, target = world("random", 3, 20, 20, 8)
    expected = exact_ranking(text, video, target, scale=1.0, top_k=2)
    monkeypatch.setattr(ranks, "filter_ranks", lambda *_, **__: pytest.fail("float32 products were taken for exact enough"))
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "medium")
    assert_same(rank_both_directions(text, video, target, scale=1.0, block_size=7, top_k=2), expected)
