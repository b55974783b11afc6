"""The whole path in object storage: shards and checkpoints on a real S3 server, read from there by machines with empty disks."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import s3fs

from tests.s3_server import serve_s3

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.slow


@pytest.fixture
def environment(engine_environment: dict[str, str]) -> Iterator[dict[str, str]]:
    with serve_s3() as port:
        settings = {
            "ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "ACCESS_KEY_ID": "key",
            "SECRET_ACCESS_KEY": "hush4711",
            "DEFAULT_REGION": "us-east-1",
        }
        yield engine_environment | {f"AWS_{name}": value for name, value in settings.items()}


def bucket_of(environment: dict[str, str]) -> Any:
    keys = {"key": environment["AWS_ACCESS_KEY_ID"], "secret": environment["AWS_SECRET_ACCESS_KEY"]}
    system = s3fs.S3FileSystem(endpoint_url=environment["AWS_ENDPOINT_URL"], use_listings_cache=False, skip_instance_cache=True, **keys)
    if not system.exists("bucket"):
        system.mkdir("bucket")
    return system


def run(environment: dict[str, str], *words: str) -> str:
    done = subprocess.run([sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    text = done.stdout + done.stderr
    assert done.returncode == 0, text
    assert "hush4711" not in text
    return text


def test_build_train_and_evaluate_in_object_storage(small_world: Path, environment: dict[str, str], tmp_path: Path) -> None:
    bucket = bucket_of(environment)
    bucket.put(f"{small_world}/world/", "bucket/world/", recursive=True)
    places = ["annotations=s3://bucket/world/annotations.jsonl", "videos=s3://bucket/world", "output=s3://bucket/shards"]
    run(environment, "shard_tools/build.py", "--config", "configs/shards/quickstart.yaml", *places)
    assert bucket.cat("bucket/shards/train/index.json") == (small_world / "shards" / "train" / "index.json").read_bytes()

    def machine(name: str) -> list[str]:
        """Overrides of a machine whose disk was empty before."""
        data = [f"data.{split}=s3://bucket/shards/{split}" for split in ("train", "validation", "test")]
        return [f"output={tmp_path}/{name}/runs", f"data.cache.folder={tmp_path}/{name}/cache", "model.pretrained=null", *data]

    steps = ["max_steps=12", "global_batch_size=12", "checkpoint_every_steps=3", "mirror=s3://bucket/runs"]
    train = ["dgl_scale/train.py", "--config", "configs/quickstart.yaml", "data.num_workers=1", *(f"training.{value}" for value in steps)]
    checkpoints = "bucket/runs/quickstart/checkpoints"
    with subprocess.Popen([sys.executable, *train, *machine("first")], cwd=ROOT, env=environment) as process:
        while not bucket.exists(f"{checkpoints}/step-00000003/manifest.json"):
            assert process.poll() is None
            time.sleep(0.02)
        process.kill()
    assert list((tmp_path / "first" / "cache").iterdir())
    assert not bucket.exists("bucket/runs/quickstart/finished.json")
    newest = max(path.split("/")[-2] for path in bucket.glob(f"{checkpoints}/step-*/manifest.json"))

    said = run(environment, *train, *machine("second"))
    assert f"{newest} comes from s3://bucket/runs/quickstart" in said
    assert f"resumed quickstart at step {int(newest[5:])} of 12" in said
    assert bucket.exists("bucket/runs/quickstart/finished.json")

    evaluate = ["dgl_scale/evaluate.py", "--config", "configs/quickstart.yaml", "--checkpoint", "s3://bucket/runs/quickstart"]
    run(environment, *evaluate, *machine("third"))
    (results,) = (tmp_path / "third" / "runs" / "quickstart" / "evaluation").glob("*/results.json")
    found = json.loads(results.read_text())
    best = json.loads(bucket.cat(f"{checkpoints}/best"))
    assert found["checkpoint"] == f"s3://{checkpoints}/{best['checkpoint']}/prompts.safetensors"
    assert found["selection"] == f"highest validation mean R@1 of the run ({best['value']:.2f})"
    assert found["split_folder"] == "s3://bucket/shards/test"
