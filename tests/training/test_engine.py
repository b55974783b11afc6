import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from dgl_scale.training.loss import symmetric_contrastive_loss
from dgl_scale.training.optimizer import build_optimizer
from tests.training.local_ranks import run_ranks

SCRIPT = Path(__file__).with_name("engine_rank.py")
spec = importlib.util.spec_from_file_location("engine_rank", SCRIPT)
engine_rank = importlib.util.module_from_spec(spec)
spec.loader.exec_module(engine_rank)


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, dict[str, Any]]]:
    """By number of ranks: what their ZeRO stages did."""
    folder = tmp_path_factory.mktemp("engine")
    for world, stages in ((1, "0"), (2, "0123")):
        run_ranks(world, [sys.executable, str(SCRIPT), str(folder / f"{world}.json"), *stages])
    return {world: json.loads((folder / f"{world}.json").read_text()) for world in (1, 2)}


def by_plain_torch() -> tuple[dict, float, dict[str, float]]:
    model = engine_rank.TwoTowers()
    parameters = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    optimizer = build_optimizer(parameters, engine_rank.OPTIM)
    for step in range(6):
        video, text = model(*engine_rank.batch(step))
        optimizer.zero_grad()
        symmetric_contrastive_loss(text, video, 10.0)[0].backward()
        part_norms = {
            part: float(torch.nn.utils.get_total_norm([p.grad for p in getattr(model, part).parameters()])) for part in ("video", "text")
        }
        norm = torch.nn.utils.clip_grad_norm_([p for _, p in parameters], engine_rank.OPTIM.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = engine_rank.OPTIM.lr / (1 + step)
        optimizer.step()
    moments = {f"{name}.{key}": optimizer.state[p][key] for name, p in parameters for key in ("exp_avg", "exp_avg_sq")}
    return (
        {key: value.flatten().tolist() for key, value in (moments | {f"{name}.param": p.detach() for name, p in parameters}).items()},
        float(norm),
        part_norms,
    )


@pytest.mark.slow
@pytest.mark.parametrize(("world", "stage"), [(1, 0), (2, 0), (2, 1), (2, 2), (2, 3)])
def test_deepspeed_does_what_one_process_of_plain_torch_does(answers: dict[int, dict[str, dict[str, Any]]], world: int, stage: int) -> None:
    found = answers[world][str(stage)]
    expected, norm, part_norms = by_plain_torch()
    assert found["step"] == 6
    assert found["norm"] == pytest.approx(norm, rel=1e-4)
    assert found["part_norms"] == pytest.approx(part_norms, rel=1e-4)
    assert set(found["whole"]) == set(expected)
    for key, values in expected.items():
        torch.testing.assert_close(torch.tensor(found["whole"][key]), torch.tensor(values), rtol=1e-3, atol=1e-6)
    # The same computation in another order, so only the comparison with plain torch has a tolerance.
    assert found["continued"] == found["whole"]
    sizes, trained = found["sizes"], 2 * (6 * 5 + 5)
    assert sizes["reduced"] == trained  # of the frozen layer's 42 none is in a bucket
    assert sizes["bucket"] == (trained if stage else 0)  # allocated in full: as large as the gradient, no larger
    padding = sizes["held"] - (trained if stage == 0 else trained / world)
    assert 0 <= padding <= 2  # of two parameter groups
    assert sizes["frozen"] == (42 / world if stage == 3 else 42)
