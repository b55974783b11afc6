"""Experiment trackers beside metrics.jsonl and TensorBoard: one small interface, two doors, neither a requirement."""

import hashlib
import importlib
from pathlib import Path
from typing import Any, Protocol

from dgl_scale.errors import ConfigError

_PROJECT = "dgl_scale"


class Tracker(Protocol):
    """Receives the metrics of a run."""

    def record(self, step: int, values: dict[str, float]) -> None:
        """The values of a step."""

    def close(self) -> None:
        """Send what is left."""


def start_tracker(name: str, run_folder: Path) -> Tracker:
    """A tracker by name; a resumed run goes on in the same record of it.

    Where it reports to is its own business: its environment variables and files of credentials.

    Args:
        name: `wandb` or `mlflow`.

    Raises:
        ConfigError: its package is not installed.
    """
    try:
        package = importlib.import_module(name)
    except ImportError:
        raise ConfigError(f"training.trackers names {name}, which is not installed; pip install {name}, or leave it out") from None
    return _Wandb(package, run_folder) if name == "wandb" else _Mlflow(package, run_folder)


class _Wandb:
    def __init__(self, wandb: Any, run_folder: Path) -> None:
        self._run = wandb.init(project=_PROJECT, name=run_folder.name, id=_run_id(run_folder), dir=str(run_folder), resume="allow")

    def record(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)

    def close(self) -> None:
        self._run.finish()


class _Mlflow:
    def __init__(self, mlflow: Any, run_folder: Path) -> None:
        self._mlflow = mlflow
        mlflow.set_experiment(_PROJECT)
        tag = _run_id(run_folder)
        earlier = mlflow.search_runs(filter_string=f"tags.run_folder = '{tag}'", output_format="list", max_results=1)
        if earlier:
            mlflow.start_run(run_id=earlier[0].info.run_id)
        else:
            mlflow.start_run(run_name=run_folder.name, tags={"run_folder": tag})

    def record(self, step: int, values: dict[str, float]) -> None:
        # MLflow's names have no '@'.
        self._mlflow.log_metrics({name.replace("@", "_at_"): value for name, value in values.items()}, step=step)

    def close(self) -> None:
        self._mlflow.end_run()


def _run_id(run_folder: Path) -> str:
    """The same for every start of a run."""
    return f"{run_folder.name}-{hashlib.sha256(str(run_folder.resolve()).encode()).hexdigest()[:8]}"
