import json
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from dgl_scale.training.loss import global_contrastive_loss, symmetric_contrastive_loss
from tests.training.local_ranks import run_ranks


def by_ranks(world: int, total: int, micro: int) -> dict:
    command = [sys.executable, str(Path(__file__).with_name("loss_rank.py")), str(total), str(micro)]
    return json.loads(run_ranks(world, command, timeout_s=120)[0].splitlines()[-1])


def literal(total: int) -> dict:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(2, total, 6, generator=generator, dtype=torch.float64)
    weights = torch.randn(2, 6, 5, generator=generator, dtype=torch.float64).requires_grad_()
    text, video = F.normalize(torch.tanh(inputs @ weights), dim=-1)
    loss = torch.zeros((), dtype=torch.float64)
    for i in range(total):
        scores_of_videos = 7.0 * torch.stack([text[i] @ video[j] for j in range(total)])
        scores_of_texts = 7.0 * torch.stack([text[j] @ video[i] for j in range(total)])
        loss = (
            loss
            - (scores_of_videos[i] - scores_of_videos.logsumexp(0)) / (2 * total)
            - (scores_of_texts[i] - scores_of_texts.logsumexp(0)) / (2 * total)
        )
    loss.backward()
    return {"loss": loss.item(), "gradient": weights.grad.flatten().tolist()}


@pytest.mark.parametrize(("world", "micro"), [(1, 24), (1, 6), (2, 12), (2, 4), (3, 8), (4, 2)])
def test_every_split_of_the_batch_gives_the_global_gradient(world: int, micro: int) -> None:
    expected, found = literal(24), by_ranks(world, 24, micro)
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-12)
    torch.testing.assert_close(
        torch.tensor(found["gradient"], dtype=torch.float64),
        torch.tensor(expected["gradient"], dtype=torch.float64),
        rtol=1e-12,
        atol=1e-14,
    )


def test_recall_counts_hits() -> None:
    text = torch.eye(4)
    video = torch.eye(4)[[0, 1, 3, 2]]
    assert global_contrastive_loss(text, video, 100.0).recall_at_1 == 50.0


def test_loss_of_chance_is_log_of_the_batch() -> None:
    loss, logits = symmetric_contrastive_loss(torch.ones(8, 2), torch.ones(8, 2), 100.0)
    assert logits.shape == (8, 8)
    assert float(loss) == pytest.approx(torch.log(torch.tensor(8.0)).item())
