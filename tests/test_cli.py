import subprocess
import sys
from pathlib import Path

import pytest

from dgl_scale.cli import main

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "ray", "deepspeed", "open_clip", "numpy", "pyarrow", "pydantic", "webdataset")


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for command in ("quickstart", "shards", "train", "evaluate", "report", "metrics", "prompts"):
        assert f"\n  {command}" in text


@pytest.mark.parametrize("words", [["--help"], ["shards", "--help"]])
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    code = (
        f"import sys; from dgl_scale.cli import main; main({words!r}); print([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize("command", ["train", "evaluate", "report", "metrics", "prompts", "quickstart"])
def test_every_command_explains_itself_without_torch(command: str) -> None:
    code = f"""
import sys
from dgl_scale.cli import main
try:
    main([{command!r}, "--help"])
except SystemExit as end:
    assert not end.code
print([m for m in ("torch", "ray", "deepspeed", "open_clip") if m in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert "usage:" in done.stdout


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["quikstart"], "unknown command quikstart; did you mean quickstart?"),
        (["shards", "bild"], "unknown command shards bild; did you mean shards build?"),
        (["train"], "the following arguments are required: --config"),
        (["train", "--config", "nowhere.yaml"], "no config file nowhere.yaml"),
        (["train", "--config", "configs/quickstart.yaml", "word"], "unexpected argument 'word'"),
        (["train", "--config", "configs/quickstart.yaml", "modle.clip=x"], "unknown key modle; did you mean model?"),
        (["evaluate", "--config", "configs/quickstart.yaml"], "--checkpoint is missing"),
        (["prompts", "info", "nowhere.safetensors"], "nowhere.safetensors"),
        (["prompts", "import", "ckpt.pth.tar"], "the following arguments are required: --clip"),
        (["prompts", "import", "ckpt.pth.tar", "--clip", "x", "--num-frames", "0"], "--num-frames: '0' is no positive number"),
        (["report", "nowhere"], "no run folder nowhere"),
    ],
)
def test_wrong_usage_is_one_line(words: list[str], expected: str) -> None:
    done = subprocess.run([sys.executable, "-m", "dgl_scale.cli", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode in (1, 2)
    assert expected in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""
