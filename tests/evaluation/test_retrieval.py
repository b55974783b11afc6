"""The figures of a results.json from features: agreement with the parts, twin pairs by a literal loop."""

import json

import pytest
import torch

from dgl_scale.config import EvaluationConfig
from dgl_scale.evaluation.features import Features
from dgl_scale.evaluation.metrics import retrieval_metrics
from dgl_scale.evaluation.retrieval import evaluate_features, flat_metrics, rank_features, twin_accuracy
from dgl_scale.evaluation.unit_vectors import exact_unit

KEYS = ("a", "b", "c", "d", "e")


@pytest.fixture
def features() -> Features:
    generator = torch.Generator().manual_seed(0)
    video_index = torch.tensor([0, 0, 1, 2, 3, 3, 3, 4])
    text = torch.randn(8, 7, generator=generator)
    video = torch.randn(5, 7, generator=generator) + 0.3 * text[[0, 2, 3, 4, 7]]
    video[3] = video[2]  # twins that the model cannot tell apart
    return Features(video, text, video_index, torch.arange(8)[:, None], KEYS, 100.0)


def test_figures_agree_with_ranks_and_are_finite_json(features: Features) -> None:
    evaluation = EvaluationConfig(bootstrap_samples=40, block_size=3, top_k=2)
    retrieval = evaluate_features(features, evaluation, twins={"a": "b", "b": "a"}, seed=0)
    json.dumps(retrieval.figures, allow_nan=False)
    assert (retrieval.figures["queries"], retrieval.figures["videos"]) == (8, 5)
    for direction in ("text_to_video", "video_to_text"):
        figures = dict(retrieval.figures[direction])
        interval = figures.pop("interval")
        assert set(interval) == set(figures)
        graded = {name: figures.pop(name) for name in ("mAP", "nDCG") if name in figures}
        assert bool(graded) == (direction == "video_to_text")
        assert figures == retrieval_metrics(getattr(retrieval.ranking, direction).ranks.numpy())
        assert all(low <= high for low, high in interval.values())
        assert set(retrieval.figures["rerank"]["dual_softmax"][direction]) == set(figures)
    recalls = [retrieval.figures[d][f"R@{k}"] for d in ("text_to_video", "video_to_text") for k in (1, 5, 10)]
    assert retrieval.figures["RSum"] == pytest.approx(sum(recalls))
    assert retrieval.figures["RSum_interval"][0] <= retrieval.figures["RSum"] <= retrieval.figures["RSum_interval"][1]
    assert flat_metrics(rank_features(features, evaluation))["video_to_text/MnR"] == retrieval.figures["video_to_text"]["MnR"]


def test_twin_accuracy_agrees_with_a_literal_loop(features: Features) -> None:
    twins = {"a": "b", "b": "a", "c": "d", "d": "c", "e": "not in the split"}
    scores = exact_unit(features.text) @ exact_unit(features.video).T
    other = {0: 1, 1: 0, 2: 3, 3: 2}
    by_caption, by_clip = [], []
    for q, v in enumerate(features.video_index.tolist()):
        if v in other:
            right, wrong = scores[q, v], scores[q, other[v]]
            by_caption.append(float(right > wrong) + 0.5 * float(right == wrong))
    for v, twin in other.items():
        right = max(scores[q, v] for q in range(8) if features.video_index[q] == v)
        wrong = max(scores[q, v] for q in range(8) if features.video_index[q] == twin)
        by_clip.append(float(right > wrong) + 0.5 * float(right == wrong))

    result = twin_accuracy(features, twins, samples=20, seed=0)
    assert result is not None
    assert result["pairs"] == 2
    assert result["text_to_video"]["accuracy"] == pytest.approx(100 * sum(by_caption) / len(by_caption))
    assert result["video_to_text"]["accuracy"] == pytest.approx(100 * sum(by_clip) / len(by_clip))
    assert 0.5 in by_caption


def test_no_twins_no_accuracy(features: Features) -> None:
    assert twin_accuracy(features, {}, samples=20, seed=0) is None
    assert twin_accuracy(features, {"a": "elsewhere", "b": "b"}, samples=20, seed=0) is None
