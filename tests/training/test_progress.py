import json
from pathlib import Path

import pytest
import torch

from dgl_scale.batch import VideoTextBatch
from dgl_scale.errors import DataError
from dgl_scale.telemetry import MetricsWriter
from dgl_scale.training.progress import Progress, RunSize, longest_caption, sample_keys

CPU = torch.device("cpu")
# The largest id ends a caption; zeros pad it.
BATCH = VideoTextBatch(torch.zeros(2, 1), torch.tensor([[9, 3, 10, 0, 0], [9, 3, 4, 10, 0]]), torch.arange(2), ("a", "b"))
SIZE = RunSize(total_steps=10, global_batch_size=6, flops=lambda length: length * 1e12, peak_tflops=50.0)
VALUES = {"loss": 1.5, "in_batch_R@1": 25.0, "lr": 1e-3}


def test_caption_lengths_and_keys() -> None:
    assert longest_caption(BATCH) == 4
    assert sample_keys([BATCH, BATCH]) == ["a", "b", "a", "b"]


def test_a_step_is_recorded_with_where_its_time_went(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    writer = MetricsWriter(tmp_path, 3)
    progress = Progress(SIZE, 3, CPU, writer)
    assert progress.fetch(iter([[BATCH]])) == ([BATCH], None)
    with progress.timer.phase("forward"):
        pass
    with progress.paused("checkpoint"):
        pass
    progress.log(5, VALUES, num_skipped=2)
    writer.close()
    record = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert record["step"] == 5
    assert {f"{name}_s" for name in ("step", "data", "forward", "communication", "backward", "optimizer", "checkpoint")} <= set(record)
    assert record["videos_per_s"] == pytest.approx(6 / record["step_s"])
    assert record["model_tflops_per_s"] == pytest.approx(4 / 2 / record["step_s"])
    assert record["mfu"] == pytest.approx(record["model_tflops_per_s"] / 50)
    assert record["samples_skipped"] == 2
    assert record["memory_gib"] > 0
    line = capsys.readouterr().err
    assert line.startswith("step 5/10  loss 1.500  in-batch R@1 25.0  lr 1.00e-03")
    assert "2 samples skipped" in line


def test_without_a_known_peak_there_is_no_utilisation() -> None:
    size = RunSize(10, 6, lambda length: 1.0, None)
    assert "mfu" not in Progress(size, 0, CPU, None).log(1, VALUES, 0)


def test_what_cannot_be_read_is_a_reason_and_the_end_is_none() -> None:
    def broken():
        raise DataError("too many samples cannot be read")
        yield

    progress = Progress(SIZE, 0, CPU, None)
    assert progress.fetch(broken()) == ([], "too many samples cannot be read")
    assert progress.fetch(iter([])) == ([], None)
