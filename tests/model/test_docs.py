"""The examples of docs/model.md run as they are written, one after the other."""

import re
from pathlib import Path
from typing import Any

import pytest


def test_the_examples_in_the_documentation_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Path(__file__).parents[2] / "docs" / "model.md"
    examples = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for example in examples:
        exec(compile(example, str(page), "exec"), names)
    assert names["similarity"].shape == (2, 2)
    assert names["metadata"]["extra"] == {"note": "untrained"}
    assert names["heat"].shape == (3, 7, 7)
