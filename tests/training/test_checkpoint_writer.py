import threading

import pytest

from dgl_scale.errors import DglError
from dgl_scale.training.checkpoint_writer import CheckpointWriter


def fail() -> None:
    raise DglError("cannot write x: No space left on device")


def test_a_write_does_not_hold_up_the_caller() -> None:
    writer = CheckpointWriter(in_background=True)
    may_end, ended = threading.Event(), threading.Event()

    def slow_write() -> None:
        assert may_end.wait(30)
        ended.set()

    writer.submit(slow_write)
    assert not ended.is_set()
    may_end.set()
    assert writer.finish() is None
    assert ended.is_set()
    writer.close()


def test_writes_follow_each_other() -> None:
    writer = CheckpointWriter(in_background=True)
    order: list[int] = []
    for i in range(5):
        writer.submit(lambda i=i: order.append(i))
    writer.close()
    assert order == [0, 1, 2, 3, 4]


def test_in_the_foreground_a_write_is_done_when_submitted() -> None:
    writer = CheckpointWriter(in_background=False)
    order: list[int] = []
    writer.submit(lambda: order.append(1))
    assert order == [1]
    writer.close()


def test_single_failures_are_said_and_three_on_end_are_fatal(capsys: pytest.CaptureFixture[str]) -> None:
    writer = CheckpointWriter(in_background=False)
    writer.submit(fail)
    writer.submit(fail)
    assert writer.fatal_failure() is None
    assert capsys.readouterr().err.count("warning: a checkpoint failed: cannot write x: No space left on device; training goes on") == 2
    writer.submit(lambda: None)
    assert writer.finish() is None
    for _ in range(3):
        writer.submit(fail)
    assert writer.fatal_failure() == "cannot write x: No space left on device"
    assert writer.finish() == "cannot write x: No space left on device"
    writer.close()
