"""The picture of the architecture is that of the layers and imports of today."""

import runpy
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_picture_is_that_of_the_code() -> None:
    drawn = runpy.run_path(str(DOCS / "draw_architecture.py"))["draw"]()
    assert (DOCS / "architecture.svg").read_text(encoding="utf-8") == drawn, "run: python docs/draw_architecture.py"
    for name in ("DeepSpeed", "Ray", "open_clip", "WebDataset", "decord", "fsspec", "shard_tools"):
        assert f"{name}" in drawn
