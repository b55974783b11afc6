import os
import signal

import pytest

from dgl_scale.training.stop import StopRequest


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_is_noted_and_handlers_are_given_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    stop = StopRequest()
    assert stop.reason is None
    os.kill(os.getpid(), number)
    assert stop.reason == number.name
    stop.close()
    assert signal.getsignal(number) == before


def test_ctrl_c_twice_interrupts() -> None:
    stop = StopRequest()
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    stop.close()
