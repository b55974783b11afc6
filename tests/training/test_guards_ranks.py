"""The guards on three ranks, of which one differs."""

import json
import sys
from pathlib import Path

import pytest

from tests.training.local_ranks import run_ranks

SCRIPT = Path(__file__).with_name("guards_rank.py")


@pytest.mark.slow
def test_all_ranks_say_the_same_of_the_one_that_differs() -> None:
    outputs = run_ranks(3, [sys.executable, str(SCRIPT)], timeout_s=120)
    answers = json.loads(outputs[0])
    assert answers[0] == answers[1] == answers[2]
    same, different, not_finite = answers[0]["messages"]
    assert same == "nothing"
    assert different.startswith("the prompts of rank 2 differ from rank 0's at step 5")
    assert not_finite == "loss is nan at step 6; rank 1: samples clip1; lower optim.lr, or look at these samples"
    assert answers[0]["numbers"] == {"a": 1.0, "b": 2.0, "c": 3.0}
    assert answers[0]["agreed"] == [2, 5]
