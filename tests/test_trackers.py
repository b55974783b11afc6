"""Trackers that are installed are really used, offline; the others are refused by name."""

import importlib.util
from pathlib import Path

import pytest

from dgl_scale.errors import ConfigError
from dgl_scale.trackers import start_tracker


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_tracker_that_is_not_installed_is_one_line(name: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(name):
        pytest.skip(f"{name} is installed")
    with pytest.raises(ConfigError, match=f"training.trackers names {name}, which is not installed; pip install {name}"):
        start_tracker(name, tmp_path)


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_resumed_run_goes_on_in_the_same_record(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    for step in (1, 2):
        tracker = start_tracker(name, run_folder)
        tracker.record(step, {"in_batch_R@1": float(step)})
        tracker.close()
    if name == "mlflow":
        client = importlib.import_module("mlflow").MlflowClient()
        (experiment,) = client.search_experiments(filter_string="name = 'dgl_scale'")
        (run,) = client.search_runs([experiment.experiment_id])
        assert [metric.step for metric in client.get_metric_history(run.info.run_id, "in_batch_R_at_1")] == [1, 2]
    else:
        assert len({folder.name.rpartition("-")[2] for folder in (run_folder / "wandb").glob("offline-run-*")}) == 1
