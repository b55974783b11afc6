"""What all evaluations of a watched run come to: curves over its steps, and which checkpoint is best by validation.

evaluation/curves-validation/metrics.jsonl  tensorboard/      the figures of every step evaluated so far
evaluation/best.json  best-step-00001000.safetensors           the best step and its prompts, which outlive the checkpoint
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dgl_scale.errors import DataError
from dgl_scale.evaluation.metrics import METRICS
from dgl_scale.evaluation.results import read_results
from dgl_scale.evaluation.retrieval import DIRECTIONS
from dgl_scale.files import atomic_file, path_inside, read_json, replaced_folder, write_json
from dgl_scale.telemetry import MetricsWriter

BEST = "best.json"
BEST_PROMPTS = re.compile(r"best-step-\d{8}\.safetensors")


def curves_folder(folder: Path, split: str) -> Path:
    """Where the curves of a split are, in `evaluation/` of a run."""
    return folder / f"curves-{split}"


def write_curves(folder: Path, split: str) -> None:
    """Write the figures of all evaluated steps anew, in the order of steps, whatever the order of evaluation.

    Args:
        folder: `evaluation/` of a run; nobody else may be writing its curves.
    """
    by_step = {}
    for path in folder.glob(f"step-*-{split}"):
        try:
            results = read_results(path)
        except DataError:
            # Being replaced; whoever does it writes the curves after it.
            continue
        by_step[results["step"]] = {f"{split}/{d}/{metric}": results[d][metric] for d in DIRECTIONS for metric in METRICS}
    with replaced_folder(curves_folder(folder, split)) as temporary:
        writer = MetricsWriter(temporary, 0)
        for step in sorted(by_step):
            writer.record(step, by_step[step])
        writer.close()


def note_best(folder: Path, results: Mapping[str, Any], prompts: Path) -> None:
    """Keep prompts, and point `best.json` at them, if no evaluated step of the run is better on the validation split.

    Args:
        folder: of the evaluation; nobody else may be noting the best.
        prompts: the prompts file.
    """
    facts = {"step": results["step"], "metric": "validation mean R@1", "value": mean_recall(results)}
    kept = f"best-step-{results['step']:08d}.safetensors"
    keep_best(folder.parent, {"prompts": kept, **facts, "evaluation": folder.name, "checkpoint": results["checkpoint"]}, prompts)


def keep_best(folder: Path, best: Mapping[str, Any], prompts: Path) -> None:
    """Make `best` the content of `best.json`, unless that names a better one; the prompts of one that is not best are removed.

    Args:
        folder: `evaluation/` of a run.
        prompts: a file with those that `best` names.
    """
    pointer = folder / BEST
    if pointer.exists() and not is_better(best, read_json(pointer)):
        return
    kept = path_inside(folder, best["prompts"])
    with atomic_file(kept) as stream:
        stream.write(prompts.read_bytes())
    write_json(pointer, best)
    for other in folder.iterdir():
        if BEST_PROMPTS.fullmatch(other.name) and other.name != best["prompts"]:
            other.unlink(missing_ok=True)


def is_better(best: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Which of two contents of `best.json` counts: of equal ones the earlier step, in whatever order they were evaluated."""
    return (float(best["value"]), -int(best["step"])) > (float(other["value"]), -int(other["step"]))


def mean_recall(results: Mapping[str, Any]) -> float:
    """What checkpoints are chosen by: the mean of both directions' R@1."""
    return sum(float(results[direction]["R@1"]) for direction in DIRECTIONS) / len(DIRECTIONS)
