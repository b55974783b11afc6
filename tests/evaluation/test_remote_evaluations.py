"""Evaluations of a run beside it in object storage, on a real S3 server: complete or absent, and the same on every machine."""

import json
from pathlib import Path
from typing import Any

import pytest

from dgl_scale.evaluation.metrics import METRICS
from dgl_scale.evaluation.remote_evaluations import RemoteEvaluations
from dgl_scale.evaluation.results import read_results
from dgl_scale.evaluation.retrieval import DIRECTIONS
from dgl_scale.evaluation.watch_summary import note_best, write_curves
from dgl_scale.files import exclusive_lock, write_json
from dgl_scale.storage.clients import StorageError
from dgl_scale.storage.storage import Storage
from dgl_scale.telemetry import read_metrics


class Machine:
    """One whose disk holds the folder `evaluation/` of the run `run`."""

    def __init__(self, folder: Path, run: str) -> None:
        self.folder = folder
        self.copy = RemoteEvaluations(f"s3://bucket/{run}", folder, suffix="-validation", split="validation")

    def evaluate(self, step: int, recall: float) -> None:
        """As the watcher leaves it."""
        path = self.folder / f"step-{step:08d}-validation"
        for name in ("attention", "tensorboard"):
            (path / name).mkdir(parents=True, exist_ok=True)
            (path / name / "file").write_text(f"{name} of {step}")
        figures = dict.fromkeys(METRICS, recall)
        write_json(path / "results.json", {"step": step, "checkpoint": "c", **dict.fromkeys(DIRECTIONS, figures)})
        write_curves(self.folder, "validation")
        prompts = self.folder.parent / "prompts"
        prompts.write_text(f"prompts of {step}")
        note_best(path, read_results(path), prompts)

    def recalls(self) -> dict[int, float]:
        return {record["step"]: record["validation/text_to_video/R@1"] for record in read_metrics(self.folder / "curves-validation")}

    def best(self) -> tuple[int, str]:
        best = json.loads((self.folder / "best.json").read_text())
        (prompts,) = self.folder.glob("best-step-*")
        assert prompts.name == best["prompts"]
        return best["step"], prompts.read_text()


@pytest.fixture
def machines(bucket: Any, tmp_path: Path, request: pytest.FixtureRequest) -> tuple[Machine, Machine, str]:
    """Two machines, and where their run's evaluations are."""
    run = request.node.name
    first, second = (Machine(tmp_path / name / "evaluation", run) for name in ("first", "second"))
    for machine in (first, second):
        machine.folder.mkdir(parents=True)
    return first, second, f"bucket/{run}/evaluation"


def test_machines_have_each_others_evaluations_and_the_best_of_all(machines: tuple[Machine, Machine, str], bucket: Any) -> None:
    first, second, there = machines
    first.evaluate(10, 30.0)
    first.copy.sync()
    assert sorted(path.removeprefix(f"{there}/") for path in bucket.find(there)) == [
        "best-step-00000010.safetensors",
        "best.json",
        "curves-validation/metrics.jsonl",
        "step-00000010-validation/attention/file",
        "step-00000010-validation/results.json",
    ]
    second.evaluate(20, 40.0)
    second.copy.sync()
    first.evaluate(30, 35.0)
    first.copy.sync()
    second.copy.sync()
    for machine in (first, second):
        assert machine.recalls() == {10: 30.0, 20: 40.0, 30: 35.0}
        assert machine.best() == (20, "prompts of 20")
        assert (machine.folder / "step-00000010-validation" / "attention" / "file").read_text() == "attention of 10"
        assert not list(machine.folder.glob(".*"))
    assert [path for path in bucket.find(there) if "best-step" in path] == [f"{there}/best-step-00000020.safetensors"]
    lines = bucket.cat(f"{there}/curves-validation/metrics.jsonl").decode().splitlines()
    assert {record["step"]: record["validation/text_to_video/R@1"] for record in map(json.loads, lines)} == first.recalls()


def test_what_is_not_complete_there_is_absent(machines: tuple[Machine, Machine, str], bucket: Any) -> None:
    first, second, there = machines
    first.evaluate(10, 30.0)
    first.copy.sync()
    results = f"{there}/step-00000010-validation/results.json"
    content = bucket.cat(results)
    bucket.rm(results)
    second.copy.sync()
    assert not list(second.folder.glob("step-*"))
    bucket.pipe_file(results, content)
    # Nor is it taken while somebody here makes it.
    with exclusive_lock(second.folder / ".step-00000010-validation.lock"):
        second.copy.sync()
        assert not list(second.folder.glob("step-*"))
    second.copy.sync()
    assert second.recalls() == {10: 30.0}


def test_what_was_made_anew_or_never_arrived_is_sent(machines: tuple[Machine, Machine, str], bucket: Any) -> None:
    first, second, there = machines
    first.evaluate(10, 30.0)
    first.copy.sync()
    first.evaluate(10, 20.0)
    first.copy.sync()
    second.copy.sync()
    assert second.recalls() == {10: 30.0}, "it is complete on both sides"
    first.copy.renew("step-00000010-validation")
    assert not bucket.exists(f"{there}/step-00000010-validation/results.json")
    # As if it had been killed here; another process of this machine goes on.
    Machine(first.folder, there.split("/")[1]).copy.sync()
    assert json.loads(bucket.cat(f"{there}/step-00000010-validation/results.json"))["text_to_video"]["R@1"] == 20.0


def test_curves_and_best_that_failed_are_sent_by_the_next_try(
    machines: tuple[Machine, Machine, str], bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _, there = machines
    first.evaluate(10, 30.0)
    send = Storage.send

    def refuse_summary(storage: Storage, source: Path, url: str) -> None:
        if "metrics.jsonl" in url:
            raise StorageError("out of order")
        send(storage, source, url)

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "send", refuse_summary)
        with pytest.raises(StorageError, match="out of order"):
            first.copy.sync()
    assert not bucket.exists(f"{there}/best.json")
    first.copy.sync()
    assert bucket.exists(f"{there}/best.json") and bucket.exists(f"{there}/curves-validation/metrics.jsonl")


def test_other_splits_are_left_alone(machines: tuple[Machine, Machine, str], bucket: Any) -> None:
    first, _, there = machines
    bucket.pipe_file(f"{there}/step-00000010-test/results.json", b"{}")
    bucket.pipe_file(f"{there}/step-00000010-validation-on-other/results.json", b"{}")
    (first.folder / "step-00000020-test").mkdir()
    first.copy.sync()
    assert [path.name for path in first.folder.iterdir()] == ["step-00000020-test"]
    assert len(bucket.find(there)) == 2
