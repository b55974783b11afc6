import importlib.metadata
import importlib.util
import shutil
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from dgl_scale.config import RunConfig
from dgl_scale.config_file import load_config
from dgl_scale.doctor.machine import check_bytecode, check_collective, check_shared_memory, check_versions

Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize(("free", "status"), [(64 << 20, "fail"), (8 << 30, "ok")])
def test_shared_memory_is_held_against_the_batches(monkeypatch: pytest.MonkeyPatch, free: int, status: str) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(free, 0, free))
    finding = check_shared_memory(load_config(RunConfig, "configs/msrvtt_vit_b32.yaml"))
    # 4 workers with 2 batches each, and one handed over: 9 of 128 videos of 12 frames.
    assert finding.status == status
    assert "1.94 GiB needed" in finding.found


def test_old_and_missing_packages_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = importlib.metadata.version

    def version(name: str) -> str:
        if name == "ray":
            raise importlib.metadata.PackageNotFoundError
        return "2.7.1+cu121" if name == "torch" else installed(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    findings = {finding.subject: finding for finding in check_versions()}
    assert findings["torch"].status == findings["ray"].status == "fail"
    assert findings["torch"].found == "2.7.1+cu121, needed 2.8 or later"
    assert {finding.status for name, finding in findings.items() if name not in ("torch", "ray")} == {"ok"}


def test_bytecode_that_is_not_kept_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "pycache_prefix", str(tmp_path))
    finding = check_bytecode()
    assert finding.status == "warn" and "PYTHONDONTWRITEBYTECODE" in finding.advice
    cached = Path(importlib.util.cache_from_source(torch.__file__))
    cached.parent.mkdir(parents=True)
    cached.touch()
    assert cached.is_relative_to(tmp_path) and check_bytecode().status == "ok"


def test_processes_that_cannot_meet_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nowhere0")
    finding = check_collective("gloo", 2)
    assert finding.status == "fail"
    assert "GLOO_SOCKET_IFNAME" in finding.advice
