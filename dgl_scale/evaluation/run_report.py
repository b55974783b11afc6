"""A report from run folders: their evaluations, their metrics.jsonl and the shards they were evaluated on."""

import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dgl_scale.errors import DataError
from dgl_scale.evaluation.attention_picture import AttentionExample, read_examples
from dgl_scale.evaluation.charts import Curve
from dgl_scale.evaluation.metrics import Difference
from dgl_scale.evaluation.query_gallery import MAX_QUERIES, MAX_STRIP_BYTES, query_gallery
from dgl_scale.evaluation.query_set import Evaluated, QuerySet, group_by_queries
from dgl_scale.evaluation.report import Origin, Report, ReportRow, ReportTable, SideBySide, summarise
from dgl_scale.evaluation.results import FROZEN, RESULTS, read_results
from dgl_scale.evaluation.run_settings import compare_settings, read_configs
from dgl_scale.evaluation.split_record import read_coverage, read_leakage
from dgl_scale.evaluation.training_curves import further_curves, training_curves

_NAMES = {"linear": "DGL-Linear", "transformer": "DGL-Transformer"}
_MARKS = ("checkpoints", "config.yaml", "evaluation", "metrics.jsonl")
_MAX_ATTENTION = 3


def evaluation_folders(place: Path) -> list[Path]:
    """The evaluations of a run folder, the frozen baseline first, then by name (for steps, their order); an evaluation folder itself.

    Raises:
        DataError: there are none.
    """
    if (place / RESULTS).is_file():
        return [place]
    if not place.is_dir():
        raise DataError(f"no run folder {place}; give the folder that train.py or evaluate.py wrote")
    folders = sorted(path.parent for path in (place / "evaluation").glob(f"[!.]*/{RESULTS}"))
    if not folders and not any((place / name).exists() for name in _MARKS):
        raise DataError(f"{place} is no run folder; give the folder that train.py or evaluate.py wrote")
    if not folders:
        raise DataError(f"{place} holds no evaluation; run dgl-scale evaluate --checkpoint {place} first")
    return sorted(folders, key=lambda folder: not folder.name.startswith(FROZEN))


def load_evaluations(places: Sequence[Path]) -> list[Evaluated]:
    """All evaluations of these run and evaluation folders, each under a name of its own; of equal frozen baselines the first alone.

    Raises:
        DataError: a folder holds no evaluation, or a damaged one.
    """
    folders = dict.fromkeys(folder.resolve() for place in places for folder in evaluation_folders(place))
    evaluations: list[Evaluated] = []
    for folder in folders:
        results = read_results(folder)
        run_folder = folder.parent.parent if folder.parent.name == "evaluation" else folder
        name = _row_name(results, run_folder.name)
        # Two runs of one name can lie in different folders, and two checkpoints can have had one step.
        longer = (name, f"{name}, {run_folder.name}", f"{name}, {run_folder.name}/{folder.name}", f"{name}, {folder}")
        taken = {other.name for other in evaluations}
        one = Evaluated(next(words for words in longer if words not in taken), folder, run_folder, results)
        if not (one.trains_nothing and any(_is_same_baseline(one, other) for other in evaluations)):
            evaluations.append(one)
    return evaluations


def build_report(
    evaluations: Sequence[Evaluated],
    *,
    title: str,
    baseline: Path | None = None,
    max_queries: int = MAX_QUERIES,
    summary: str | None = None,
    commands: Sequence[str] = (),
) -> Report:
    """The report of some evaluations; those of different queries are kept apart.

    Args:
        baseline: as in `group_by_queries`.
        max_queries: of each set of queries.
        summary: None: `summarise` of the first set.
        commands: to repeat all; empty: those of each evaluation.

    Raises:
        DataError: an evaluation is damaged.
    """
    sets = group_by_queries(evaluations, baseline)
    tables = [_table(queries) for queries in sets]
    configs = read_configs(_run_folders(evaluations))
    return Report(
        title=title,
        summary=summary or summarise(tables[0].rows, sets[0].evaluations[0].results["queries"]),
        tables=tables,
        notices=_notices(sets),
        curves=_curves(sets, training_curves),
        further_curves=_curves(sets, further_curves),
        galleries=[query_gallery(queries, max_queries=max_queries, max_bytes=MAX_STRIP_BYTES // len(sets)) for queries in sets],
        attention=_attention(sets),
        settings=compare_settings(configs),
        configs=configs,
        origins=[_origin(one, with_commands=not commands) for one in evaluations],
        versions=_versions(evaluations),
        commands=commands,
    )


def report_row(name: str, results: Mapping[str, Any], against: Mapping[str, Difference] | None = None) -> ReportRow:
    """The table row of a results.json."""
    return ReportRow(
        name=name,
        trained_parameters=results["trained_parameters"],
        trained_share=results["trained_share"],
        text_to_video=results["text_to_video"],
        video_to_text=results["video_to_text"],
        against=against,
        pair_accuracy=results.get("pair_accuracy"),
        rerank=results.get("rerank", {}),
        pessimistic=results.get("pessimistic"),
        selection="" if results["trained_parameters"] == 0 else results["selection"],
        recall_sum=results.get("RSum"),
        recall_sum_interval=results.get("RSum_interval"),
    )


def _row_name(results: Mapping[str, Any], run_name: str) -> str:
    prompts = results["model"]["latent_space"]
    split = "" if results["split"] == "test" else f" ({results['split']})"
    if results.get("transfer"):
        split += f", trained on {results['trained_on']['dataset']}"
    if results["trained_parameters"] == 0:
        return f"Frozen CLIP{split}"
    if prompts is None:
        return f"{run_name}{split}"
    step = "" if results["step"] is None else f", step {results['step']}"
    return f"{_NAMES.get(prompts, prompts)} ({run_name}{step}){split}"


def _is_same_baseline(one: Evaluated, other: Evaluated) -> bool:
    same = ("text_to_video", "video_to_text", "shards", "model", "trained_parameters")
    return all(one.results.get(key) == other.results.get(key) for key in same)


def _table(queries: QuerySet) -> ReportTable:
    results = queries.evaluations[queries.shown].results
    rows = [report_row(one.name, one.results, queries.against_baseline(number)) for number, one in enumerate(queries.evaluations)]
    baseline = None if queries.baseline is None else queries.evaluations[queries.baseline].name
    return ReportTable(queries.label, rows, baseline, read_coverage(results), read_leakage(results))


def _notices(sets: Sequence[QuerySet]) -> list[str]:
    notices = []
    if len(sets) > 1:
        what = "; ".join(f"{', '.join(one.name for one in queries.evaluations)}: {queries.label}" for queries in sets)
        notices.append(
            f"These evaluations answer {len(sets)} different sets of queries. Each set has tables of its own, and figures of one must "
            f"not be compared with those of another. {what}."
        )
    for queries in sets:
        digests: dict[str, list[str]] = {}
        for one in queries.evaluations:
            digests.setdefault(one.results["shards"][:12], []).append(one.name)
        if len(digests) > 1:
            which = "; ".join(f"{', '.join(names)}: shards {digest}" for digest, names in digests.items())
            notices.append(f"The same queries were answered from different shards, whose frames may differ. {which}.")
    return notices


def _run_folders(evaluations: Sequence[Evaluated]) -> dict[str, Path]:
    """The runs of these evaluations by name; where two have one name, by their folders."""
    folders = dict.fromkeys(one.run_folder for one in evaluations)
    names = Counter(folder.name for folder in folders)
    return {folder.name if names[folder.name] == 1 else str(folder): folder for folder in folders}


def _curves(sets: Sequence[QuerySet], draw: Callable[[Mapping[str, Path]], list[Curve]]) -> list[Curve]:
    """Charts of the runs of each set: what was trained for other queries shares no axes."""
    curves = []
    for queries in sets:
        trained = {name: folder for name, folder in _run_folders(queries.evaluations).items() if (folder / "metrics.jsonl").is_file()}
        drawn = draw(trained) if trained else []
        curves += drawn if len(sets) == 1 else [replace(curve, title=f"{curve.title}; {queries.label}") for curve in drawn]
    return curves


def _attention(sets: Sequence[QuerySet]) -> dict[str, list[AttentionExample]]:
    shown = [queries.evaluations[queries.shown] for queries in sets]
    others = [one for queries in sets for one in queries.evaluations if one not in shown]
    examples = {one.name: read_examples(one.folder) for one in (*shown, *others)}
    return dict([(name, found) for name, found in examples.items() if found][:_MAX_ATTENTION])


def _origin(one: Evaluated, *, with_commands: bool) -> Origin:
    results = one.results
    facts = {
        "checkpoint": str(results["checkpoint"]),
        "model": ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in results["model"].items() if value is not None),
        "shards": f"{results['split_folder']}, digest {results['shards']}",
        "took": f"{results['seconds']:.0f} s",
    }
    commands = []
    config = one.run_folder / "config.yaml"
    if not one.trains_nothing and config.is_file():
        commands.append(["deepspeed", "dgl_scale/train.py", "--config", str(config), f"name={one.run_folder.name}-again"])
    script = results["command"][0].endswith(".py")
    commands.append(["python", *results["command"]] if script else results["command"])
    return Origin(one.name, facts, [shlex.join(command) for command in commands] if with_commands else ())


def _versions(evaluations: Sequence[Evaluated]) -> SideBySide:
    """A column for each evaluation; a single one where all have the same versions."""
    names = dict.fromkeys(package for one in evaluations for package in one.results["versions"])
    columns = {one.name: [str(one.results["versions"].get(package, "not recorded")) for package in names] for one in evaluations}
    if len(set(map(tuple, columns.values()))) == 1:
        columns = {"version": next(iter(columns.values()))}
    return SideBySide(list(columns), [(package, values) for package, *values in zip(names, *columns.values(), strict=True)])
