"""Ranks against a literal loop, over tile sizes, with ties, duplicates and several captions a video."""

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dgl_scale.errors import DataError
from dgl_scale.evaluation.ranking_input import Parts
from dgl_scale.evaluation.ranks import (
    Ranking,
    merge_parts,
    own_scores,
    rank_both_directions,
    rank_text_part,
    right_scores,
)
from dgl_scale.evaluation.unit_vectors import exact_unit, pair_scores
from tests.reference.exact_ranking import full_matrix, literal_ranks

SCALE = 100.0


def assert_same(one: Ranking, other: Ranking) -> None:
    """Bitwise."""
    for name in ("ranks", "scores", "top_indices", "top_scores"):
        assert torch.equal(getattr(one.text_to_video, name), getattr(other.text_to_video, name))
        assert torch.equal(getattr(one.video_to_text, name), getattr(other.video_to_text, name))


def rank(text: Tensor | Parts, video: Tensor | Parts, target: Tensor, block_size: int = 7, top_k: int = 3) -> Ranking:
    return rank_both_directions(text, video, target, scale=SCALE, block_size=block_size, top_k=top_k)


def world(seed: int, num_videos: int, num_texts: int, num_distinct: int, width: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """Features with many exact duplicates, several captions a video, in shuffled order."""
    generator = torch.Generator().manual_seed(seed)
    words = torch.randn(num_distinct, width, generator=generator)
    text = words[torch.randint(num_distinct, (num_texts,), generator=generator)]
    video = words[torch.randint(num_distinct, (num_videos,), generator=generator)] * torch.randint(
        1, 3, (num_videos, 1), generator=generator
    )
    extra = torch.randint(num_videos, (num_texts - num_videos,), generator=generator)
    target = torch.cat([torch.arange(num_videos), extra])[torch.randperm(num_texts, generator=generator)]
    return text, video, target


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    num_videos=st.integers(1, 13),
    extra=st.integers(0, 11),
    distinct=st.integers(1, 30),
    block=st.integers(1, 30),
)
def test_agrees_with_a_literal_loop(seed: int, num_videos: int, extra: int, distinct: int, block: int) -> None:
    text, video, target = world(seed, num_videos, num_videos + extra, distinct)
    ranking = rank(text, video, target, block_size=block)
    expected = literal_ranks(full_matrix(text, video, SCALE), target.tolist())
    assert ranking.text_to_video.ranks.tolist() == expected[0]
    assert ranking.video_to_text.ranks.tolist() == expected[1]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), block=st.integers(1, 40), k=st.integers(1, 40))
def test_top_k_is_a_stable_sort_whatever_the_tiles(seed: int, block: int, k: int) -> None:
    text, video, target = world(seed, 17, 29, 6)
    ranking = rank(text, video, target, block_size=block, top_k=k)
    matrix = full_matrix(text, video, SCALE)
    for direction, scores in ((ranking.text_to_video, matrix), (ranking.video_to_text, matrix.T)):
        order = scores.argsort(dim=1, descending=True, stable=True)[:, :k]
        assert torch.equal(direction.top_indices, order)
        assert torch.equal(direction.top_scores, scores.gather(1, order))


def test_results_are_bitwise_the_same_for_all_tile_sizes_at_real_width() -> None:
    text, video, target = world(3, num_videos=211, num_texts=307, num_distinct=150, width=512)
    rankings = [rank(text, video, target, block_size=size) for size in (1000, 64, 13, 211)]
    for other in rankings[1:]:
        assert_same(other, rankings[0])


class _LoadedAnew(Sequence[Tensor]):
    """Parts that are made whenever they are asked for, as from files."""

    def __init__(self, features: Tensor, size: int) -> None:
        self._parts = torch.split(features, size)

    def __len__(self) -> int:
        return len(self._parts)

    def __getitem__(self, index: Any) -> Any:
        return self._parts[index].clone()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), text_size=st.integers(1, 40), video_size=st.integers(1, 40), block=st.integers(1, 20))
def test_features_in_parts_give_the_same_ranking(seed: int, text_size: int, video_size: int, block: int) -> None:
    text, video, target = world(seed, 17, 29, 6)
    whole = rank(text, video, target)
    assert_same(whole, rank(_LoadedAnew(text, text_size), _LoadedAnew(video, video_size), target, block_size=block))
    # And as separate processes do it.
    right = right_scores(own_scores(text, video, target, scale=SCALE), target, 17)
    starts = range(0, 29, text_size)
    parts = [
        rank_text_part(text[s : s + text_size], s, _LoadedAnew(video, video_size), right, scale=SCALE, block_size=block, top_k=3)
        for s in starts
    ]
    assert_same(whole, merge_parts(parts, right))
    if len(parts) > 1:
        with pytest.raises(DataError, match="do not make up all 29 captions"):
            merge_parts(parts[:-1], right)
        with pytest.raises(DataError, match="come where those from 0 on are due"):
            merge_parts(parts[::-1], right)


def test_inner_products_are_exact_rationals() -> None:
    generator = torch.Generator().manual_seed(0)
    units = exact_unit(torch.randn(4, 512, generator=generator))
    for first in units:
        for second in units:
            exact = sum(Fraction(a) * Fraction(b) for a, b in zip(first.tolist(), second.tolist(), strict=True))
            assert Fraction(float(first @ second)) == exact
            assert Fraction(float(first.flip(0) @ second.flip(0))) == exact


def test_rounding_is_finer_than_float32() -> None:
    features = torch.randn(50, 512, generator=torch.Generator().manual_seed(1))
    cosine = torch.nn.functional.normalize(features.double(), dim=-1)
    assert (exact_unit(features) @ exact_unit(features).T - cosine @ cosine.T).abs().max() < 6e-8


@pytest.mark.parametrize("factor", [1e-30, 1.0, 3.7e20])
def test_length_of_features_does_not_matter(factor: float) -> None:
    features = torch.randn(3, 7, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(exact_unit(features * factor), exact_unit(features), atol=1e-7)
    assert torch.allclose(exact_unit(features).norm(dim=1), torch.ones(3, dtype=torch.float64), atol=1e-6)


@pytest.mark.parametrize("vector", [[0.3, -0.2, 0.9], [0.0, 0.0, 0.0]])
def test_a_constant_model_scores_chance(vector: list[float]) -> None:
    features = torch.tensor(vector).repeat(11, 1)
    ranking = rank(features, features, torch.arange(11), block_size=4)
    assert ranking.text_to_video.ranks.tolist() == [6.0] * 11
    assert ranking.video_to_text.ranks.tolist() == [6.0] * 11


def test_permuting_queries_and_gallery_permutes_the_ranks() -> None:
    text, video, target = world(5, 19, 31, 9)
    queries, gallery = torch.randperm(31), torch.randperm(19)
    position = torch.empty_like(gallery).scatter_(0, gallery, torch.arange(19))
    plain = rank(text, video, target)
    permuted = rank(text[queries], video[gallery], position[target[queries]])
    assert torch.equal(permuted.text_to_video.ranks, plain.text_to_video.ranks[queries])
    assert torch.equal(permuted.video_to_text.ranks, plain.video_to_text.ranks[gallery])


def test_other_captions_of_a_video_are_no_competitors() -> None:
    text = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    video = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    ranking = rank(text, video, torch.tensor([0, 0, 1]))
    assert ranking.video_to_text.ranks.tolist() == [1.0, 1.0]
    assert ranking.text_to_video.ranks.tolist() == [1.0, 1.0, 1.0]


def test_pair_scores_are_the_entries_of_the_matrix() -> None:
    text, video, target = world(7, 13, 23, 8, width=31)
    assert torch.equal(pair_scores(text, video[target], scale=SCALE), full_matrix(text, video, SCALE)[torch.arange(23), target])
