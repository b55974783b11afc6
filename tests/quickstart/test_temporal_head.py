"""The rival starts as the baseline, learns order where features hold it, and is seeded."""

import pytest
import torch

from dgl_scale.quickstart.temporal_head import (
    HeadRecipe,
    PairedFeatures,
    TemporalHead,
    text_to_video_recall,
    train_temporal_head,
)

RECIPE = HeadRecipe(steps=120, batch_size=64, validate_every_steps=30)


def _unit(*shape: int, seed: int) -> torch.Tensor:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(values, dim=-1)


def _ordered_world(seed: int, num_pairs: int) -> PairedFeatures:
    """Videos show thing a, then b, or the other way round; the text is a rotated sum of both."""
    things = _unit(2 * num_pairs, 13, seed=seed)
    first, second = things[:num_pairs], things[num_pairs:]
    a, b = torch.cat([first, second]), torch.cat([second, first])
    frames = torch.stack([a, a, b], dim=1)
    text = torch.nn.functional.normalize(a + b + 0.5 * (a - b).roll(1, dims=-1), dim=-1)
    return PairedFeatures(frames, text, torch.arange(len(text)))


def test_an_untrained_head_is_the_average_of_the_frames():
    frames = _unit(5, 3, 13, seed=0)
    expected = torch.nn.functional.normalize(frames.mean(dim=1), dim=-1)
    torch.testing.assert_close(TemporalHead(3, 13)(frames), expected)


def test_it_learns_an_order_that_averaging_cannot_see():
    train, validation = _ordered_world(1, 400), _ordered_world(2, 50)
    head = train_temporal_head(train, validation, seed=0, recipe=RECIPE)
    frozen = TemporalHead(3, 13)
    assert text_to_video_recall(head, validation) > text_to_video_recall(frozen, validation) + 20


def test_same_seed_same_head_and_the_global_generator_is_left_alone():
    train, validation = _ordered_world(1, 20), _ordered_world(2, 7)
    before = torch.get_rng_state()
    heads = [train_temporal_head(train, validation, seed=seed, recipe=HeadRecipe(steps=7)) for seed in (3, 3, 4)]
    assert torch.equal(torch.get_rng_state(), before)
    states = [torch.cat([p.flatten() for p in head.parameters()]) for head in heads]
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])


def test_size_is_as_the_documents_say():
    assert sum(p.numel() for p in TemporalHead(4, 128).parameters()) == 231_808


@pytest.mark.parametrize(("repeats", "expected"), [(1, 100.0), (2, 0.0)])
def test_recall_counts_ties_as_half(repeats, expected):
    frames = _unit(3, 2, 13, seed=5)[:, :1].expand(3, 2, 13).repeat(repeats, 1, 1)
    features = PairedFeatures(frames, frames[:3, 0], torch.arange(3))
    assert text_to_video_recall(TemporalHead(2, 13), features) == expected
