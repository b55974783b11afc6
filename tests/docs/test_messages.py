"""The messages that the documentation explains are those that the code says."""

import re

import pytest

from tests.docs.documented import ROOT

# Said by others: the system, torchvision, PyTorch.
FOREIGN = {"No space left on device", "operator torchvision::nms does not exist", "unable to allocate shared memory", "Bus error"}


@pytest.fixture(scope="module")
def said() -> str:
    """All source text, that of the Slurm scripts included, with strings that go over several lines joined, and `…` for values."""
    files = [file for package in ("dgl_scale", "shard_tools") for file in (ROOT / package).rglob("*.py")]
    files += [*(ROOT / "cluster" / "slurm").iterdir()]
    text = "\n".join(file.read_text(encoding="utf-8") for file in files)
    text = re.sub(r'"\s*\n\s*f?"', "", text)
    for _ in range(3):
        text = re.sub(r"\{[^{}\n]*\}", "…", text)
    return text


@pytest.mark.parametrize("page", ["troubleshooting", "reading"])
def test_messages_are_those_of_the_code(page: str, said: str) -> None:
    rows = re.findall(r"^\| (`.*?) \| ", (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert rows
    for message in re.findall(r"`([^`]+)`", " ".join(rows)):
        pieces = [piece.strip(" :;,.()?`") for piece in message.split("…")]
        for piece in pieces:
            if len(piece.split()) > 1 and not any(foreign in piece for foreign in FOREIGN):
                assert piece in said, f"{page}.md: {message}"
