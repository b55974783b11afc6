"""Training runs as users start them, stopped in every way, and what is left of them."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from dgl_scale.quickstart.processes import end_process_tree, free_port

ROOT = Path(__file__).resolve().parents[2]
STEPS = 12

pytestmark = pytest.mark.slow


def overrides(world: Path, output: Path, *more: str) -> list[str]:
    data = [f"data.{split}={world}/shards/{split}" for split in ("train", "validation", "test")]
    training = [
        f"training.max_steps={STEPS}",
        "training.global_batch_size=12",
        "training.checkpoint_every_steps=2",
        "training.log_every_steps=1",
    ]
    return [
        "--config",
        "configs/quickstart.yaml",
        f"output={output}",
        "model.pretrained=null",
        "data.num_workers=0",
        "seed=3",
        *data,
        *training,
        *more,
    ]


def deepspeed(world: Path, output: Path, *more: str, ranks: int = 2) -> list[str]:
    program = str(Path(sys.executable).with_name("deepspeed"))
    return [
        program,
        "--num_accelerators",
        str(ranks),
        "--master_port",
        str(free_port()),
        "dgl_scale/train.py",
        *overrides(world, output, *more),
    ]


@contextlib.contextmanager
def started(command: list[str], environment: dict[str, str]) -> Iterator[subprocess.Popen]:
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        yield process
    finally:
        end_process_tree(process.pid, grace_s=0)
        process.communicate()


def finish(command: list[str], environment: dict[str, str]) -> tuple[int, str]:
    with started(command, environment) as process:
        output, _ = process.communicate(timeout=240)
        return process.returncode, output


def wait_for(path: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 200
    while not path.exists():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.02)


def checkpoint(output: Path, step: int = STEPS) -> Path:
    return output / "quickstart" / "checkpoints" / f"step-{step:08d}"


def same_state(left: Path, right: Path) -> None:
    for name in ("prompts.safetensors", "optimizer.safetensors"):
        expected, found = load_file(left / name), load_file(right / name)
        assert expected.keys() == found.keys()
        for key, tensor in expected.items():
            assert torch.equal(tensor, found[key]), f"{name}: {key} differs"


def losses(output: Path) -> dict[int, float]:
    records = [json.loads(line) for line in (output / "quickstart" / "metrics.jsonl").read_text().splitlines()]
    steps = [record["step"] for record in records if "loss" in record]
    assert steps == sorted(set(steps)), "a step occurs twice"
    return {record["step"]: record["loss"] for record in records if "loss" in record}


@pytest.fixture(scope="module")
def undisturbed(small_world: Path, engine_environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("undisturbed")
    code, text = finish(deepspeed(small_world, output), engine_environment)
    assert code == 0, text
    assert (output / "quickstart" / "checkpoints" / "best").exists()
    assert list((output / "quickstart" / "tensorboard").iterdir())
    return output


@pytest.mark.parametrize("victim", ["launcher", "rank"])
def test_a_killed_run_ends_whole_and_continues_to_the_same_prompts(
    small_world: Path, engine_environment: dict[str, str], undisturbed: Path, tmp_path: Path, victim: str
) -> None:
    with started(deepspeed(small_world, tmp_path), engine_environment) as process:
        wait_for(checkpoint(tmp_path, 2), process)
        members = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        # The launcher, its process on this host, and then the ranks.
        (members[0] if victim == "launcher" else members[-1]).kill()
        process.wait(60)
        _, alive = psutil.wait_procs(members, timeout=60)
        assert not alive
    assert not checkpoint(tmp_path).exists()
    code, text = finish(deepspeed(small_world, tmp_path), engine_environment)
    assert code == 0, text
    assert "resumed quickstart at step" in text
    same_state(checkpoint(undisturbed), checkpoint(tmp_path))
    assert losses(tmp_path) == losses(undisturbed)


def test_sigterm_writes_a_checkpoint_and_another_world_size_continues(
    small_world: Path, engine_environment: dict[str, str], undisturbed: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "dgl_scale/train.py", *overrides(small_world, tmp_path, "training.checkpoint_every_steps=100")]
    with started(command, engine_environment) as process:
        wait_for(tmp_path / "quickstart" / "metrics.jsonl", process)
        while '"step": 3' not in (tmp_path / "quickstart" / "metrics.jsonl").read_text():
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=100)
    assert process.returncode == 75, output
    assert "run the same command to go on" in output
    assert len(list((tmp_path / "quickstart" / "checkpoints").glob("step-*"))) == 1
    code, text = finish(deepspeed(small_world, tmp_path, "training.micro_batch_size=4"), engine_environment)
    assert code == 0, text
    found, expected = losses(tmp_path), losses(undisturbed)
    assert found.keys() == expected.keys()
    assert list(found.values()) == pytest.approx(list(expected.values()), rel=1e-5)


def test_a_run_under_zero_3_continues_without_zero_on_one_rank(
    small_world: Path, engine_environment: dict[str, str], undisturbed: Path, tmp_path: Path
) -> None:
    with started(deepspeed(small_world, tmp_path, "training.deepspeed=configs/deepspeed/zero3.json"), engine_environment) as process:
        wait_for(checkpoint(tmp_path, 2), process)
        os.killpg(process.pid, signal.SIGTERM)
        output, _ = process.communicate(timeout=240)
    assert "276,992 trained and 1,805,312 frozen parameters" in output
    command = [sys.executable, "dgl_scale/train.py", *overrides(small_world, tmp_path, "training.deepspeed=configs/deepspeed/zero0.json")]
    code, text = finish(command, engine_environment)
    assert code == 0, text
    assert "resumed quickstart at step" in text
    found, expected = losses(tmp_path), losses(undisturbed)
    assert list(found) == list(expected)
    assert list(found.values()) == pytest.approx(list(expected.values()), rel=1e-5)


def test_a_damaged_checkpoint_is_passed_over(
    small_world: Path, engine_environment: dict[str, str], undisturbed: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "dgl_scale/train.py", *overrides(small_world, tmp_path, "training.max_steps=4", "optim.warmup_fraction=0")]
    code, text = finish(command, engine_environment)
    assert code == 0, text
    damaged = checkpoint(tmp_path, 4) / "optimizer.safetensors"
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    code, text = finish(command, engine_environment)
    assert code == 0, text
    assert "is damaged" in text
    assert "resumed quickstart at step 2" in text


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("model.num_frames=3", "was written with another config: model.num_frames was 4 and is 3"),
        ("optim.lr=1e-3", "optim.lr was 0.015 and is 0.001"),
    ],
)
def test_a_changed_config_does_not_resume(
    small_world: Path, engine_environment: dict[str, str], undisturbed: Path, change: str, expected: str
) -> None:
    command = [sys.executable, "dgl_scale/train.py", *overrides(small_world, undisturbed, change)]
    before = {path: path.stat().st_mtime_ns for path in (undisturbed / "quickstart" / "checkpoints").rglob("*")}
    code, text = finish(command, engine_environment)
    assert code == 1, text
    assert expected in text
    assert "Traceback" not in text
    assert before == {path: path.stat().st_mtime_ns for path in (undisturbed / "quickstart" / "checkpoints").rglob("*")}


def test_wrong_sizes_are_one_line(small_world: Path, engine_environment: dict[str, str], tmp_path: Path) -> None:
    code, text = finish(deepspeed(small_world, tmp_path, "training.global_batch_size=13"), engine_environment)
    assert code == 2
    assert text.count("error: global_batch_size 13 cannot be shared equally by 2 ranks") == 1
    assert "Traceback" not in text


def test_ctrl_c_leaves_no_process(small_world: Path, engine_environment: dict[str, str], tmp_path: Path) -> None:
    with started(deepspeed(small_world, tmp_path, "training.max_steps=1000"), engine_environment) as process:
        wait_for(checkpoint(tmp_path, 2), process)
        members = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        assert len(members) >= 4
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=100)
    _, alive = psutil.wait_procs(members, timeout=30)
    assert not alive
    latest = json.loads((tmp_path / "quickstart" / "checkpoints" / "latest").read_text())["checkpoint"]
    assert latest > "step-00000002"


def test_a_port_in_use_is_one_line(small_world: Path, engine_environment: dict[str, str], tmp_path: Path) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = str(server.getsockname()[1])
        launch = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        command = [sys.executable, "dgl_scale/train.py", *overrides(small_world, tmp_path)]
        code, text = finish(command, {**engine_environment, **launch})
    assert code == 1, text
    assert f"the ranks cannot meet at 127.0.0.1:{port}" in text
    assert "choose another --master_port" in text
    assert "Traceback" not in text


def test_too_many_corrupt_samples_stop_all_ranks_together(
    small_world: Path, engine_environment: dict[str, str], undisturbed: Path, tmp_path: Path
) -> None:
    shards = tmp_path / "shards"
    shutil.copytree(small_world / "shards" / "train", shards)
    for tar in shards.glob("*.tar"):
        content = bytearray(tar.read_bytes())
        content[len(content) // 2] ^= 1
        tar.write_bytes(content)
    code, text = finish(deepspeed(small_world, tmp_path, f"data.train={shards}", "data.max_corrupt_fraction=0.001"), engine_environment)
    assert code == 1, text
    assert text.count("error: rank ") == 1
    assert "samples of" in text
    assert "more than data.max_corrupt_fraction 0.001" in text
    assert "Traceback" not in text
