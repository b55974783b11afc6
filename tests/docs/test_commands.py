"""Every command of the documentation: its options exist, its configs are valid, and a test runs it or a mark says why none can."""

import ast
import importlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from dgl_scale.config import RunConfig
from dgl_scale.config_file import load_config
from dgl_scale.shards_config import ShardsConfig
from tests.docs.documented import PAGES, ROOT, Command, blocks, commands, inline_code
from tests.docs.real_parsers import parse, run_command_line

# What starts a command line to the test (under tests/) that really runs such a line. All others need a mark: <!-- not run: WHY -->.
RUN_BY = {
    "deepspeed dgl_scale/train.py": "integration/test_training.py::test_a_killed_run_ends_whole_and_continues_to_the_same_prompts",
    "deepspeed dgl_scale/train.py --hostfile": "integration/test_hostfile.py::test_two_hosts_train_one_model",
    "deepspeed dgl_scale/train.py --launcher": "integration/test_hostfile.py::test_open_mpi_starts_the_ranks",
    "dgl-scale bench model": "bench/test_model_bench.py::test_measures_all_contenders_and_stores_them",
    "dgl-scale bench model --estimate": "bench/test_model_bench.py::test_estimates_without_running_anything",
    "dgl-scale bench model --scaling": "bench/test_model_bench.py::test_scaling_is_drawn",
    "dgl-scale bench ranking": "bench/test_ranking_bench.py::test_the_command_prints_ratios_and_writes_json",
    "dgl-scale bench ranking --faiss": "bench/test_faiss_search.py::test_the_command_prints_recall_and_writes_json",
    "dgl-scale bench reader": "bench/test_reader_bench.py::test_all_contestants_run_and_are_compared",
    "dgl-scale bench shards": "shard_tools/test_bench.py::test_every_contestant_runs_and_the_ratios_are_told",
    "dgl-scale bench training": "bench/test_training_bench.py::test_two_ranks_send_what_the_formula_says",
    "dgl-scale compare": "evaluation/test_compare.py::test_the_command_prints_text_json_and_markdown",
    "dgl-scale doctor": "doctor/test_command.py::test_a_sound_machine_has_no_failures_and_nothing_is_left",
    "dgl-scale doctor --hostfile": "doctor/test_command.py::test_hosts_that_cannot_be_reached_fail_by_name",
    "dgl-scale metrics": "evaluation/test_metrics_command.py::test_all_files_give_the_same_figures",
    "dgl-scale prompts card": "model/test_hub.py::test_the_card_keeps_the_conventions",
    "dgl-scale prompts pull": "model/test_hub.py::test_what_is_pushed_is_pulled",
    "dgl-scale prompts push": "model/test_hub.py::test_what_is_pushed_is_pulled",
    "dgl-scale prompts export": "test_prompts.py::test_import_and_export",
    "dgl-scale prompts import": "test_prompts.py::test_import_and_export",
    "dgl-scale prompts info": "test_prompts.py::test_info_says_all_that_the_file_holds",
    "dgl-scale quickstart": "integration/test_quickstart.py::test_interrupted_anywhere_it_leaves_no_process_and_goes_on",
    "dgl-scale report": "evaluation/test_evaluate.py::test_a_whole_evaluation_and_its_report",
    "dgl-scale shards leakage": "shard_tools/test_leakage.py::test_changed_copies_are_found_and_different_videos_are_not",
    "dgl-scale shards leakage --write-exclusions": "shard_tools/test_leakage.py::test_the_exclusions_are_what_training_leaves_out",
    "dgl-scale shards stats": "shard_tools/test_stats.py::test_the_command_prints_and_draws",
    "dgl-scale shards verify": "shard_tools/test_verify.py::test_a_sound_build",
    "python dgl_scale/evaluate.py": "integration/test_quickstart.py::test_interrupted_anywhere_it_leaves_no_process_and_goes_on",
    "python dgl_scale/evaluate.py --watch": "evaluation/test_watch.py::test_a_run_is_followed_while_it_writes_and_deletes",
    "python dgl_scale/train.py": "integration/test_training_in_process.py::test_a_watched_run_validates_nothing_itself",
    "python dgl_scale/train.py --dry-run": "training/test_dry_run.py::test_without_shards_frames_are_random_and_nothing_is_left",
    "python dgl_scale/train.py --estimate": "training/test_run_estimate.py::test_the_command_says_it_all_without_data_weights_or_ranks",
    "python shard_tools/build.py --estimate": "shard_tools/test_estimate.py::test_a_real_build_has_the_bytes_of_its_estimate",
    "python shard_tools/build.py": "integration/test_build_with_ray.py::test_two_workers_and_a_killed_one_give_the_same_bytes",
    "python tests/scripts/kill_builds.py": "integration/test_build_with_ray.py::test_kills_of_any_process_at_random_moments_change_nothing",
    "ray job submit": "integration/test_quickstart.py::test_interrupted_anywhere_it_leaves_no_process_and_goes_on",
    "srun dgl_scale/train.py": "cluster/test_slurm.py::test_disturbed_in_every_way_and_watched_a_job_trains_to_the_same_prompts",
    "torchrun dgl_scale/train.py": "docs/test_torchrun.py::test_torchrun_starts_ranks_that_train",
}
_OURS = ("dgl-scale", "python")
_LAUNCHERS = ("deepspeed", "torchrun", "srun", "ray")


@pytest.fixture(autouse=True)
def in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("command", commands(), ids=lambda command: command.place)
def test_a_command_is_one_that_there_is(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    words = command.words
    if words[0] == "make":
        assert set(words[1:]) <= set(re.findall(r"^([\w-]+):", Path("Makefile").read_text(), flags=re.MULTILINE))
    elif words[0] == "sbatch":
        _check_batch(words)
    elif words[0] in _LAUNCHERS:
        _check_launch(words)
    elif words[0] in _OURS:
        _check_ours(words)
    else:
        assert command.why_not_run, f"{command.place}: {words[0]} is no command of the project; fence other text, or mark the block"


@pytest.mark.parametrize("command", commands(), ids=lambda command: command.place)
def test_a_command_is_run_by_a_test_or_says_why_not(command: Command) -> None:
    is_run = any(_is_a(command.words, name) for name in RUN_BY) and not _needs_more(command.words)
    assert is_run or command.why_not_run, f"{command.place}: no test runs `{' '.join(command.words)}`, and no mark says why"


@pytest.mark.parametrize("name", RUN_BY)
def test_the_tests_that_run_commands_are_there(name: str) -> None:
    file, _, test = RUN_BY[name].partition("::")
    assert re.search(rf"^def {test}\(", (ROOT / "tests" / file).read_text(encoding="utf-8"), flags=re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_in_the_text_exist(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for code in inline_code(page):
        if not code.startswith("dgl-scale "):
            continue
        words = code.split()[1:]
        names = words[: next((i for i, word in enumerate(words) if not re.fullmatch(r"[a-z]+", word)), len(words))]
        with pytest.raises(SystemExit) as ended:
            run_command_line(["dgl-scale", *names, "--help"])
        assert ended.value.code == 0, f"{page.name}: {code}"
        missing = set(re.findall(r"--[a-z-]+", code)) - set(re.findall(r"--[a-z-]+", capsys.readouterr().out)) - {"--help", "--version"}
        assert not missing, f"{page.name}: {code}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_examples_name_what_there_is(page: Path) -> None:
    for block in blocks(page):
        place = f"{block.page}:{block.line}"
        if block.language == "python":
            _check_imports("\n".join(block.lines), place)
        if block.language == "yaml":
            overrides = _as_overrides(yaml.safe_load("\n".join(block.lines)))
            load_config(RunConfig, "configs/quickstart.yaml", ["data.train=null", *overrides])
        assert block.language != "unnamed", f"{place}: say the language of the block, or indent commands"


def test_what_is_gone_is_noticed(capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in [
        (["dgl-scale", "report", "runs/mine", "--gone"], "unrecognized arguments: --gone"),
        (["dgl-scale", "shards", "verify", "build", "--gone"], "unrecognized arguments: --gone"),
        (["dgl-scale", "report", "runs/mine", "--tit", "Mine"], "unrecognized arguments: --tit"),
        (["dgl-scale", "gone"], "unknown command gone"),
        (["python", "dgl_scale/train.py", "--config", "configs/quickstart.yaml", "optim.gone=1"], "unknown key optim.gone"),
        (["python", "dgl_scale/train.py", "--config", "configs/gone.yaml"], "configs/gone.yaml"),
        (["deepspeed", "--gone", "dgl_scale/train.py", "--config", "configs/quickstart.yaml"], "--gone"),
        (["torchrun", "--gone", "dgl_scale/train.py", "--config", "configs/quickstart.yaml"], "--gone"),
    ]:
        with pytest.raises((SystemExit, AssertionError)) as ended:
            (_check_ours if words[0] in _OURS else _check_launch)(words)
        assert ended.type is AssertionError or ended.value.code != 0
        assert message in "".join(capsys.readouterr())


def _is_a(words: Sequence[str], name: str) -> bool:
    """Whether the command's words begin so, a launcher's own options apart, and hold the options that `name` asks for."""
    program, *rest = [word for word in name.split() if not word.startswith("--")]
    options = {word for word in name.split() if word.startswith("--")}
    start = words.index(rest[0]) if rest and rest[0] in words else None
    return words[0] == program and start is not None and list(words[start : start + len(rest)]) == rest and options <= set(words)


def _needs_more(words: Sequence[str]) -> bool:
    """A GPU, a bucket, or a config other than the quickstart's, with its dataset and weights: not what tests have."""
    if "--estimate" in words:
        return False
    configs = {word for word in words if word.endswith(".yaml")}
    return "cuda" in words or "s3://" in " ".join(words) or not configs <= {"configs/quickstart.yaml", "configs/shards/quickstart.yaml"}


def _check_ours(words: Sequence[str]) -> None:
    arguments = vars(parse(words))
    if str(arguments.get("config")).startswith("runs/"):  # written by a run
        return
    if "overrides" in arguments:
        with pytest.raises(SystemExit) as ended:
            run_command_line([*words, "--show-config"])
        assert ended.value.code == 0
    elif arguments.get("config"):
        load_config(RunConfig, arguments["config"])


def _check_launch(words: Sequence[str]) -> None:
    """The options of `deepspeed` and `torchrun` are theirs to judge; of other launchers, the command behind them alone is looked at."""
    program, *rest = words
    if program == "deepspeed":
        from deepspeed.launcher.runner import parse_args

        parsed = parse_args(rest)
        _check_ours(["python", parsed.user_script, *parsed.user_args])
    elif program == "torchrun":
        from torch.distributed.run import parse_args as parse_torchrun

        parsed = parse_torchrun(rest)
        _check_ours(["python", parsed.training_script, *parsed.training_script_args])
    elif "python" in words:
        _check_ours(words[words.index("python") :])


def _check_batch(words: Sequence[str]) -> None:
    script = next(i for i, word in enumerate(words[1:], 1) if not word.startswith("-"))
    assert Path(words[script]).is_file()
    for i, word in enumerate(words):
        if word.endswith(".yaml"):
            schema = ShardsConfig if Path(word).parent.name == "shards" else RunConfig
            overrides = [word for word in words[i + 1 :] if "=" in word and not word.startswith("-")]
            load_config(schema, word, overrides)


def _check_imports(source: str, place: str) -> None:
    """Nothing is run: what the example imports from the project is there."""
    source = re.sub(r"^>>> ?", "", source, flags=re.MULTILINE)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(("dgl_scale", "shard_tools")):
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names), place


def _as_overrides(values: dict[str, object], prefix: str = "") -> list[str]:
    """`{"data": {"num_workers": 2}}` as `["data.num_workers=2"]`; lists stay whole."""
    overrides = []
    for key, value in values.items():
        if isinstance(value, dict):
            overrides += _as_overrides(value, f"{prefix}{key}.")
        else:
            overrides.append(f"{prefix}{key}={json.dumps(value)}")
    return overrides
