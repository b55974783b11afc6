"""A report of real evaluation folders: which are found, how they are named, what is said of them, and what is refused."""

import os
from pathlib import Path

import pytest

from dgl_scale.errors import DataError
from dgl_scale.evaluation.report import Report, render_report
from dgl_scale.evaluation.report_command import main
from dgl_scale.evaluation.results import read_results
from dgl_scale.evaluation.run_report import build_report, evaluation_folders, load_evaluations
from tests.evaluation.conftest import make_sample, write_split
from tests.evaluation.evaluated_runs import write_run


@pytest.fixture
def runs(tmp_path: Path, tiny_split: Path) -> Path:
    write_run(tmp_path / "runs" / "a", tiny_split, noise=3.0, latent_space=None)
    write_run(tmp_path / "runs" / "a", tiny_split, noise=0.3)
    write_run(tmp_path / "runs" / "b", tiny_split, noise=3.0, latent_space=None)
    write_run(tmp_path / "runs" / "b", tiny_split, noise=1.0, latent_space="transformer", versions={"python": "3.12.1", "torch": "2.13.0"})
    return tmp_path / "runs"


def report_of(*places: Path) -> Report:
    return build_report(load_evaluations(places), title="title")


def test_evaluations_are_listed_with_the_baseline_first(tmp_path: Path) -> None:
    for name in ("step-00000020-test", "step-00000010-test", "frozen-test", ".step-00000030-test.new"):
        folder = tmp_path / "evaluation" / name
        folder.mkdir(parents=True)
        (folder / "results.json").write_text("{}")
    found = evaluation_folders(tmp_path)
    assert [folder.name for folder in found] == ["frozen-test", "step-00000010-test", "step-00000020-test"]
    assert evaluation_folders(found[1]) == [found[1]]


def test_each_evaluation_has_a_name_and_equal_baselines_stand_once(runs: Path, tiny_split: Path) -> None:
    names = [one.name for one in load_evaluations([runs / "a", runs / "b", runs / "a" / "evaluation" / "step-00000020-test"])]
    assert names == ["Frozen CLIP", "DGL-Linear (a, step 20)", "DGL-Transformer (b, step 20)"]
    write_run(runs / "other", tiny_split, noise=2.0, latent_space=None, seed=1)
    write_run(runs / "elsewhere" / "a", tiny_split, noise=0.9)
    write_run(runs / "head", tiny_split, noise=2.0, latent_space=None, trained_parameters=10)
    names = [one.name for one in load_evaluations([runs / "a", runs / "other", runs / "head", runs / "elsewhere" / "a"])]
    assert names == ["Frozen CLIP", "DGL-Linear (a, step 20)", "Frozen CLIP, other", "head", "DGL-Linear (a, step 20), a"]


def test_a_transfer_to_another_dataset_is_in_the_name(tmp_path: Path, tiny_split: Path) -> None:
    facts = {"dataset": "msvd", "trained_on": {"run": "a", "dataset": "msrvtt"}, "transfer": True}
    write_run(tmp_path / "a", tiny_split, noise=0.3, **facts)
    (table,) = report_of(tmp_path / "a").tables
    assert table.label == "21 captions of 11 videos, msvd, split test"
    assert table.rows[0].name == "DGL-Linear (a, step 20), trained on msrvtt"
    assert table.rows[0].selection == "highest validation mean R@1 of the run (41.50)"


def test_several_runs_side_by_side(runs: Path) -> None:
    report = report_of(runs / "a", runs / "b")
    (table,) = report.tables
    assert [row.name for row in table.rows] == ["Frozen CLIP", "DGL-Linear (a, step 20)", "DGL-Transformer (b, step 20)"]
    assert (table.baseline, report.notices) == ("Frozen CLIP", [])
    assert [row.against is None for row in table.rows] == [True, False, False]
    assert [series.name for series in report.curves[0].series] == ["a", "b"]
    assert report.settings is not None
    assert (report.settings.names, report.settings.rows) == (["a", "b"], [("model.latent_space", ["linear", "transformer"])])
    assert report.versions is not None
    assert report.versions.rows[0] == ("python", ["3.11.7", "3.11.7", "3.12.1"])
    assert report.origins[1].commands == [
        f"deepspeed dgl_scale/train.py --config {runs}/a/config.yaml name=a-again",
        """python dgl_scale/evaluate.py --config c.yaml 'name=it'"'"'s 0'""",
    ]
    assert report.origins[0].commands == report.origins[1].commands[1:]
    assert report_of(runs / "a").versions is not None
    assert "Frozen CLIP" in render_report(report)


def test_other_queries_have_tables_of_their_own_and_the_page_says_so(runs: Path, tmp_path: Path) -> None:
    write_run(runs / "fewer", write_split(tmp_path / "fewer" / "test", [make_sample(i) for i in range(10)]), noise=1.0)
    report = report_of(runs / "a", runs / "fewer")
    assert [[row.name for row in table.rows] for table in report.tables] == [
        ["Frozen CLIP", "DGL-Linear (a, step 20)"],
        ["DGL-Linear (fewer, step 20)"],
    ]
    assert report.tables[1].baseline is None
    assert [gallery["name"] for gallery in report.galleries] == [
        "21 captions of 11 videos, split test",
        "19 captions of 10 videos, split test",
    ]
    assert [[series.name for series in curve.series] for curve in report.curves if curve.title.startswith("Loss")] == [["a"], ["fewer"]]
    (notice,) = report.notices
    assert "2 different sets of queries" in notice
    assert "DGL-Linear (fewer, step 20): 19 captions of 10 videos, split test" in notice
    assert notice.replace("'", "&#39;") in render_report(report)


def test_equal_queries_from_other_shards_are_compared_and_the_page_says_so(runs: Path, tmp_path: Path) -> None:
    write_run(runs / "rebuilt", write_split(tmp_path / "again" / "test", [make_sample(i) for i in reversed(range(11))]), noise=1.0)
    report = report_of(runs / "a", runs / "rebuilt")
    assert len(report.tables) == 1
    (notice,) = report.notices
    assert notice.startswith("The same queries were answered from different shards, whose frames may differ. Frozen CLIP, DGL-Linear (a")


def test_the_command_writes_all_it_names(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [tmp_path / name for name in ("r.html", "t.csv", "t.tex")]
    options = [word for option, file in zip(("--output", "--csv", "--latex"), files, strict=True) for word in (option, str(file))]
    assert main([str(runs / "a"), str(runs / "b"), "--baseline", str(runs / "b"), "--queries", "3", *options]) == 0
    assert capsys.readouterr().out == "".join(f"{kind}: {file}\n" for kind, file in zip(("report", "csv", "latex"), files, strict=True))
    html = files[0].read_text()
    assert "Text-video retrieval: a, b" in html
    assert "3 of 21 captions are here" in html
    assert "Baseline: DGL-Transformer (b, step 20)" in html
    assert len(files[1].read_text().splitlines()) == 7
    assert "DGL-Linear (a, step 20) & 35,584" in files[2].read_text()
    assert main([str(runs / "a")]) == 0
    assert (runs / "a" / "report.html").is_file()


def test_what_cannot_be_reported_is_one_clear_line(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "file").write_text("")
    damaged = write_run(tmp_path / "damaged", Path(read_results(runs / "a" / "evaluation" / "frozen-test")["split_folder"]), noise=1.0)
    (damaged / "ranks.parquet").write_bytes(b"PAR1 no parquet")
    cases = [
        ([str(tmp_path / "none")], 1, "no run folder"),
        ([str(tmp_path / "other")], 1, "is no run folder; give the folder"),
        ([str(tmp_path / "empty")], 1, "holds no evaluation; run dgl-scale evaluate"),
        ([str(runs / "a"), str(tmp_path / "empty")], 1, "holds no evaluation"),
        ([str(runs / "a"), "--baseline", str(runs / "b")], 2, "is none of the runs"),
        ([str(runs / "a"), "--output", str(tmp_path / "file" / "r.html")], 1, "cannot write"),
        ([str(runs / "a"), "--csv", str(tmp_path / "file" / "t.csv")], 1, "cannot write"),
        ([str(tmp_path / "damaged")], 1, "ranks.parquet"),
    ]
    for arguments, code, message in cases:
        assert main(arguments) == code, arguments
        error = capsys.readouterr().err
        assert message in error, error
        assert error.startswith("error: ")
        assert error.count("\n") == 1
    for arguments in ([], [str(runs / "a"), "--queries", "0"]):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 2


def test_damaged_attention_is_an_error(runs: Path) -> None:
    folder = runs / "a" / "evaluation" / "step-00000020-test" / "attention"
    os.mkdir(folder)
    (folder / "examples.json").write_text('[{"frames": 1}]')
    with pytest.raises(DataError, match="is damaged"):
        report_of(runs / "a")
