"""The example of docs/model.md runs as it is written."""

import re
from pathlib import Path
from typing import Any

import pytest


def test_the_example_in_the_documentation_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Path(__file__).parents[2] / "docs" / "model.md"
    (example,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(example, str(page), "exec"), names)
    assert names["similarity"].shape == (2, 2)
    assert names["metadata"]["extra"] == {"note": "untrained"}
