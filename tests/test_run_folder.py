import os
from pathlib import Path

import pytest

from dgl_scale.errors import CheckpointError
from dgl_scale.files import read_json
from dgl_scale.run_folder import (
    FINISHED,
    PROMPTS,
    check_complete,
    checkpoints_folder,
    find_prompts,
    mark_finished,
    newest_complete,
    remove_checkpoint,
    remove_leftovers,
    stale_checkpoints,
    step_folder,
    unmark_finished,
    write_manifest,
    write_pointer,
)


def make_checkpoint(run: Path, step: int) -> Path:
    folder = step_folder(run, step)
    folder.mkdir(parents=True)
    (folder / PROMPTS).write_bytes(b"prompts of step %d" % step)
    write_manifest(folder)
    return folder


def test_damaged_checkpoints_are_passed_over(tmp_path: Path) -> None:
    first, second, third = (make_checkpoint(tmp_path, step) for step in (1, 2, 3))
    (third / PROMPTS).write_bytes(b"prompts of step X")
    (second / "manifest.json").unlink()
    newest, problems = newest_complete(tmp_path)
    assert newest == first
    assert "is damaged" in problems[0]
    assert "is not complete" in problems[1]


def test_a_lost_file_is_named(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, 1)
    (folder / PROMPTS).unlink()
    with pytest.raises(CheckpointError, match=f"lacks {PROMPTS}"):
        check_complete(folder)


def test_find_prompts_prefers_the_best(tmp_path: Path) -> None:
    best, _ = make_checkpoint(tmp_path, 1), make_checkpoint(tmp_path, 2)
    assert find_prompts(str(tmp_path)) == step_folder(tmp_path, 2) / PROMPTS
    write_pointer(tmp_path, "best", best, value=1.0)
    assert find_prompts(str(tmp_path)) == best / PROMPTS
    assert find_prompts(str(best)) == best / PROMPTS
    assert find_prompts(str(best / PROMPTS)) == best / PROMPTS


@pytest.mark.parametrize("name", ["nowhere", "."])
def test_find_prompts_says_what_is_missing(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="no checkpoint at|no complete checkpoint"):
        find_prompts(name)


def test_retention_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    folders = [make_checkpoint(tmp_path, step) for step in range(1, 6)]
    write_pointer(tmp_path, "best", folders[1])
    assert list(stale_checkpoints(tmp_path, keep=2)) == [folders[0], folders[2]]


def test_milestones_are_kept_for_ever(tmp_path: Path) -> None:
    folders = [make_checkpoint(tmp_path, step) for step in range(1, 8)]
    assert list(stale_checkpoints(tmp_path, keep=1, keep_every=3)) == [folders[i] for i in (0, 1, 3, 4)]


def test_the_newest_is_by_step_whatever_the_clock_says(tmp_path: Path) -> None:
    first, second = make_checkpoint(tmp_path, 1), make_checkpoint(tmp_path, 2)
    os.utime(first, (4e9, 4e9))
    os.utime(second, (1.0, 1.0))
    assert newest_complete(tmp_path) == (second, [])


def test_removal_leaves_no_half_of_a_checkpoint(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, 1)
    remove_checkpoint(folder)
    remove_checkpoint(folder)
    assert list(checkpoints_folder(tmp_path).iterdir()) == []


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    kept = make_checkpoint(tmp_path, 1)
    (checkpoints_folder(tmp_path) / ".step-00000002.abc.tmp").mkdir()
    (checkpoints_folder(tmp_path) / ".latest.abc.tmp").touch()
    (tmp_path / ".config.yaml.abc.tmp").touch()
    remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.rglob("*")} == {"checkpoints", kept.name, *(p.name for p in kept.iterdir())}


def test_a_run_is_finished_until_it_goes_on(tmp_path: Path) -> None:
    mark_finished(tmp_path, 7)
    assert read_json(tmp_path / FINISHED)["step"] == 7
    unmark_finished(tmp_path)
    unmark_finished(tmp_path)
    assert not (tmp_path / FINISHED).exists()
