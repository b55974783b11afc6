"""The wheel, installed outside the checkout."""

import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT], check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_what_runs_need_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for needed in (
        "dgl_scale/configs/quickstart.yaml",
        "dgl_scale/configs/shards/quickstart.yaml",
        "dgl_scale/configs/deepspeed/zero1.json",
        "dgl_scale/evaluation/templates/report.html",
        "dgl_scale/quickstart/clip/tiny_clip.safetensors",
        "shard_tools/build.py",
    ):
        assert needed in names
    assert {name.split("/")[0] for name in names} <= {
        "dgl_scale",
        "shard_tools",
        *(n for n in map(first_part, names) if n.endswith(".dist-info")),
    }
    assert wheel.stat().st_size < 8 << 20


def first_part(name: str) -> str:
    return name.split("/")[0]


@pytest.mark.slow
def test_the_wheel_works_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    site = Path(
        subprocess.run(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], capture_output=True, text=True, check=True
        ).stdout.strip()
    )
    # The dependencies of the test's own environment, without its editable install.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    zipfile.ZipFile(wheel).extractall(site)

    def run(*words: str) -> str:
        done = subprocess.run([python, *words], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run("-c", "import dgl_scale, shard_tools; print(dgl_scale.__file__, shard_tools.__file__)").count(str(site)) == 2
    assert "quickstart" in run("-m", "dgl_scale.cli", "--help")
    assert "global_batch_size: 128" in run("-m", "dgl_scale.cli", "train", "--config", "configs/quickstart.yaml", "--show-config")
    assert "jpeg_quality" in run("-m", "dgl_scale.cli", "shards", "build", "--config", "configs/shards/quickstart.yaml", "--show-config")
    assert "--num-processes" in run("-m", "dgl_scale.cli", "quickstart", "--help")
    clip = site / "dgl_scale" / "quickstart" / "clip"
    code = f"""
from dgl_scale.config import ModelConfig
from dgl_scale.model import build_model
model = build_model(ModelConfig(clip=r"{clip}/tiny_clip.json", pretrained=r"{clip}/tiny_clip.safetensors", num_frames=2))
print(sum(p.numel() for _, p in model.trainable_parameters()))
"""
    assert int(run("-c", code)) > 0
