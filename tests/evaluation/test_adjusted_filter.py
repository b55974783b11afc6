"""Ranks by changed scores from quick products: bitwise those of exact products throughout, whatever the scores, tiles and cuts."""

from dataclasses import fields

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dgl_scale.evaluation import adjusted_filter
from dgl_scale.evaluation.adjust import Adjust
from dgl_scale.evaluation.pairwise import InProcess, LabelledFeatures
from dgl_scale.evaluation.ranks import DirectionRanks, Ranking, rank_both_directions
from dgl_scale.evaluation.rescoring import QueryBankNorm, TimesSoftmax, Unchanged, dual_softmax

WIDTH = 6


def features(seed: int, num_texts: int, num_videos: int, kind: str) -> LabelledFeatures:
    """Captions near their videos, half of them of few distinct values so that many tie; `opposed`: far from them, with negative scores."""
    generator = torch.Generator().manual_seed(seed)
    video = torch.randn(num_videos, WIDTH, generator=generator)
    video[::2] = torch.randint(-1, 2, (len(video[::2]), WIDTH), generator=generator) + 0.1
    more = torch.randint(0, num_videos, (num_texts - num_videos,), generator=generator)
    target = torch.cat([torch.arange(num_videos), more])
    text = (-video if kind == "opposed" else video)[target].clone()
    text[::2] += torch.randn(len(text[::2]), WIDTH, generator=generator)
    if kind == "unrelated":
        text = torch.randn(num_texts, WIDTH, generator=generator)
    return LabelledFeatures(text, video, target)


def both_ways(of: LabelledFeatures, adjust: tuple[Adjust, Adjust], scale: float) -> tuple[Ranking, Ranking]:
    """The filter's ranking, and that by exact products, which is taken where more than the first candidate is wanted."""
    options = {"scale": scale, "block_size": 16, "adjust": adjust}
    filtered, exact = (rank_both_directions(of.text, of.video, of.target, top_k=top_k, **options) for top_k in (1, 2))
    return filtered, exact


def assert_same(filtered: Ranking, exact: Ranking) -> None:
    for direction in ("text_to_video", "video_to_text"):
        for field in fields(DirectionRanks):
            found, expected = (getattr(getattr(ranking, direction), field.name) for ranking in (filtered, exact))
            assert torch.equal(found, expected[:, :1] if expected.ndim == 2 else expected), (direction, field.name)


def query_bank_norm(of: LabelledFeatures, scale: float) -> tuple[Adjust, Adjust]:
    generator = torch.Generator().manual_seed(9)
    bank = torch.randn(30, WIDTH, generator=generator)
    is_normalised = torch.rand(len(of.text), generator=generator) < 0.6
    return QueryBankNorm(is_normalised, InProcess(16).log_sums(of.video, bank, scale=7.0), 7.0 / scale), Unchanged()


@pytest.fixture(params=[(24, 5), (10**9, 16), (0, 512)], ids=["some or all", "all exact", "pair by pair"])
def tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adjusted_filter, "_SPARSE", request.param[0])
    monkeypatch.setattr(adjusted_filter, "_TILE", request.param[1])


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("kind", ["near", "unrelated", "opposed"])
@pytest.mark.parametrize("scale", [0.5, 20.0, 100.0, 400.0])
def test_dual_softmax_and_query_bank_norm_rank_as_exact_products_do(kind: str, scale: float) -> None:
    of = features(0, 70, 43, kind)
    softmax = dual_softmax(of.text, of.video, scale=scale, pairwise=InProcess(16))
    for adjust in (softmax, query_bank_norm(of, scale), (Unchanged(), Unchanged())):
        filtered, exact = both_ways(of, adjust, scale)
        assert_same(filtered, exact)
    assert len(set(exact.text_to_video.ranks.tolist())) > 5


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), texts=st.integers(20, 60), videos=st.integers(1, 20), scale=st.floats(0.1, 250), cut=st.integers(1, 30))
def test_no_cut_changes_a_rank(seed: int, texts: int, videos: int, scale: float, cut: int) -> None:
    of = features(seed, texts, videos, "near")
    adjust = dual_softmax(of.text, of.video, scale=scale, pairwise=InProcess(16))
    _, exact = both_ways(of, adjust, scale)
    parts = torch.split(of.text, cut), torch.split(of.video, cut + 3)
    assert_same(rank_both_directions(*parts, of.target, scale=scale, block_size=16, top_k=1, adjust=adjust), exact)


def test_large_tiles_of_several_threads() -> None:
    of = features(3, 1700, 1500, "near")
    adjust = dual_softmax(of.text, of.video, scale=100.0, pairwise=InProcess(1024))
    assert_same(*both_ways(of, adjust, 100.0))


@given(
    score=st.floats(0.001, 300),
    log_sum=st.floats(-300, 300),
    right=st.floats(1e-300, 1e300),
    mean=st.floats(-300, 300),
    slack=st.floats(0, 30),
)
def test_reach_of_dual_softmax_never_leaves_out_what_comes_to_the_right_score(
    score: float, log_sum: float, right: float, mean: float, slack: float
) -> None:
    def single(value: float) -> Tensor:
        return torch.tensor([value], dtype=torch.float64)

    adjust = TimesSoftmax(torch.tensor([log_sum, 2 * mean - log_sum], dtype=torch.float64), are_videos=True)
    zero = torch.zeros(1, dtype=torch.int64)
    for right_score in (single(right), adjust(single(score), zero, zero) * torch.exp(-single(slack))):
        if bool(adjust(single(score), zero, zero) >= right_score) and bool(right_score > 0):
            reach = adjust.reach(right_score, zero)
            assert reach.terms is not None
            assert score >= float(reach.offset + reach.slope * reach.terms[0]) - 1e-9


def test_the_limit_is_close_to_what_matters() -> None:
    """Else all pairs would be scored exactly, and the filter would gain nothing."""
    generator = torch.Generator().manual_seed(5)
    video = torch.randn(600, 64, generator=generator)
    text = video + torch.randn(600, 64, generator=generator)
    softmax, _ = dual_softmax(text, video, scale=100.0, pairwise=InProcess(1024))
    scores = 100 * torch.nn.functional.normalize(text.double()) @ torch.nn.functional.normalize(video.double()).T
    queries = torch.arange(600)
    changed = softmax(scores, queries[:, None], queries[None])
    right = changed.diag()
    reach = softmax.reach(right, queries)
    assert reach.terms is not None
    passed = scores >= reach.offset[:, None] + reach.slope[:, None] * reach.terms
    matter = changed >= right[:, None]
    assert bool((passed >= matter).all())
    assert int(passed.sum()) < 1.05 * int(matter.sum()) + 60
