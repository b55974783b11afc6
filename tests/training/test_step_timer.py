import time

import torch

from dgl_scale.training.step_timer import StepTimer


def test_phases_add_up_and_reading_starts_anew() -> None:
    timer = StepTimer(torch.device("cpu"))
    for _ in range(3):
        with timer.phase("forward"):
            time.sleep(0.002)
    with timer.phase("data", on_host=True):
        pass
    seconds = timer.read()
    assert seconds["forward"] >= 0.006
    assert set(seconds) == {"forward", "data"}
    assert timer.read() == {}
