import pytest

from dgl_scale import distributed


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            RuntimeError("[/pytorch/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:41091. GLHF!"),
            "Connection closed by peer",
        ),
        (RuntimeError("[pair.cc:537] Read error [127.0.0.1]:44765: Connection reset by peer"), "Connection reset by peer"),
        (RuntimeError("[pair.cc:537] Read error [10.0.0.2]:44765: Connection timed out"), "Connection timed out"),
        (RuntimeError("[pair.cc:537] Read error [10.0.0.2]:44765: No route to host"), "No route to host"),
        (RuntimeError("shape mismatch"), None),
        (ValueError("Connection closed by peer"), None),
    ],
)
def test_a_lost_peer_is_told_from_other_errors(error: Exception, expected: str | None) -> None:
    assert distributed.lost_peer(error) == expected


def test_one_process_agrees_with_itself() -> None:
    assert distributed.agree([3, 0]) == [3, 0]
    assert distributed.gather_objects("a") == ["a"]
    assert distributed.reduce_numbers({"a": (2.0, "mean"), "b": (3.0, "sum")}) == {"a": 2.0, "b": 3.0}
