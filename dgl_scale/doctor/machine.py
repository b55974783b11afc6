"""Checks of this machine: versions, devices, collectives, shared memory, limits, compilers, bytecode."""

import importlib.metadata
import importlib.util
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator

import psutil
import torch

from dgl_scale.config import RunConfig
from dgl_scale.doctor.finding import Finding
from dgl_scale.model.backbone import load_backbone
from dgl_scale.training.launch import free_port

_GIB = 1 << 30
_SHARED_MEMORY = "/dev/shm"  # noqa: S108 - only looked at
# What DataLoader keeps in shared memory for each worker, beside the batch that is being handed over.
_BATCHES_A_WORKER = 2
_COLLECTIVE_TIMEOUT_S = 120
_NEEDED = ("torch", "deepspeed", "open_clip_torch", "webdataset", "ray", "pyarrow", "safetensors")


def check_machine(config: RunConfig | None) -> Iterator[Finding]:
    """All checks of this machine; `config` says how large its batches are."""
    yield from check_versions()
    yield from check_gpus()
    yield check_collective("gloo", 2)
    if torch.cuda.device_count() > 1:
        yield check_collective("nccl", torch.cuda.device_count())
    yield check_shared_memory(config)
    yield check_memory()
    yield check_open_files()
    yield check_compilers()
    yield check_bytecode()


def check_versions() -> Iterator[Finding]:
    """Python and the packages that a run cannot do without, against this package's own requirements."""
    yield Finding("python", "ok", f"{platform.python_version()} ({sys.executable})")
    required = importlib.metadata.requires("dgl-scale") or []
    for name in _NEEDED:
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(name, "fail", "not installed", "pip install -e . -c constraints.txt")
            continue
        line = next((line for line in required if re.match(rf"{re.escape(name)}\b", line)), name)
        lowest = re.search(r">=([\d.]+)", line)
        if lowest and _numbers(found) < _numbers(lowest.group(1)):
            yield Finding(name, "fail", f"{found}, needed {lowest.group(1)} or later", "pip install -e . -c constraints.txt")
        else:
            yield Finding(name, "ok", found)


def check_gpus() -> Iterator[Finding]:
    """A product on each GPU."""
    if not torch.cuda.is_available():
        built = torch.version.cuda
        advice = (
            "this torch is built for CPUs only; install its CUDA build" if built is None else "look at nvidia-smi; is the driver loaded?"
        )
        yield Finding("gpu", "warn", "none: training on the CPU is for small models", advice)
        return
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        described = f"{properties.name}, {properties.total_memory / _GIB:.0f} GiB, compute capability {properties.major}.{properties.minor}"
        try:
            ones = torch.ones(256, 256, device=f"cuda:{index}")
            works = float((ones @ ones).sum()) == 256**3
        except RuntimeError as error:
            yield Finding(f"gpu {index}", "fail", f"{described}; {str(error).splitlines()[0]}", "another torch build, or another driver")
            continue
        status, advice = ("ok", "") if works else ("fail", "its products are wrong: do not use it")
        if works and properties.major < 8:
            status, advice = "warn", "no bf16: use training.precision=fp16"
        yield Finding(f"gpu {index}", status, described, advice)  # type: ignore[arg-type]


def check_collective(backend: str, world_size: int) -> Finding:
    """A sum over processes of this machine, as training does it."""
    environment = {**os.environ, "WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command = [sys.executable, "-m", "dgl_scale.doctor.collective", backend]
    processes = [
        subprocess.Popen(
            command,
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world_size)
    ]
    try:
        outputs = [process.communicate(timeout=_COLLECTIVE_TIMEOUT_S)[0] for process in processes]
    except subprocess.TimeoutExpired:
        return Finding(backend, "fail", f"{world_size} processes did not finish a sum", "look for a firewall on the loopback interface")
    finally:
        for process in processes:
            process.kill()
            process.wait()
    failed = [output for process, output in zip(processes, outputs, strict=True) if process.returncode != 0]
    if failed:
        reason = (failed[0].strip().splitlines() or ["no message"])[-1]
        return Finding(
            backend, "fail", f"{world_size} processes: {reason}", "set GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME to a working interface"
        )
    return Finding(backend, "ok", f"{world_size} processes: {outputs[0].strip().splitlines()[-1]}")


def check_shared_memory(config: RunConfig | None) -> Finding:
    """Room in /dev/shm for the batches that reading processes hand over."""
    if not os.path.isdir(_SHARED_MEMORY):
        return Finding("shared memory", "warn", "no /dev/shm", "set data.num_workers=0 if reading fails")
    free = shutil.disk_usage(_SHARED_MEMORY).free
    needed = _GIB if config is None else _shared_bytes(config)
    why = "" if config is None else f", {needed / _GIB:.2f} GiB needed by each rank's batches on their way"
    if free < needed:
        advice = "give the container more (docker run --shm-size=16g), or lower data.num_workers or training.micro_batch_size"
        return Finding("shared memory", "fail" if config else "warn", f"{free / _GIB:.2f} GiB free in /dev/shm{why}", advice)
    return Finding("shared memory", "ok", f"{free / _GIB:.2f} GiB free in /dev/shm{why}")


def check_memory() -> Finding:
    """Main memory."""
    memory = psutil.virtual_memory()
    found = f"{memory.available / _GIB:.1f} of {memory.total / _GIB:.1f} GiB available, {os.cpu_count()} CPUs"
    if memory.available < 2 * _GIB:
        return Finding("memory", "warn", found, "end other processes; a rank needs 1 GiB beside the model")
    return Finding("memory", "ok", found)


def check_open_files() -> Finding:
    """The limit of open files; each shard that is read is one."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 1024:
        return Finding("open files", "warn", f"limit {soft}", "ulimit -n 4096")
    return Finding("open files", "ok", f"limit {soft}")


def check_compilers() -> Finding:
    """What DeepSpeed's own optimizers and offloading are compiled with; the recipes use neither."""
    missing = [name for name in ("g++", "ninja") if shutil.which(name) is None]
    if missing:
        return Finding(
            "compilers", "warn", f"no {', '.join(missing)}", "needed only for offloading in a DeepSpeed config; apt install g++ ninja-build"
        )
    return Finding("compilers", "ok", "g++, ninja")


def check_bytecode() -> Finding:
    """Whether modules are kept compiled; else each process compiles all that it imports."""
    if os.path.exists(importlib.util.cache_from_source(torch.__file__)):
        return Finding("bytecode", "ok", "kept")
    found = "not kept: every process compiles what it imports, and starts two to three times as slowly"
    return Finding(
        "bytecode", "warn", found, f"unset PYTHONDONTWRITEBYTECODE, or: {sys.executable} -m compileall -q {sysconfig.get_path('purelib')}"
    )


def _shared_bytes(config: RunConfig) -> int:
    side = load_backbone(config.model.clip, config.model.pretrained, with_weights=False).shape.image_size
    micro = config.training.micro_batch_size or config.training.global_batch_size
    batch = micro * config.model.num_frames * 3 * side * side
    return batch * (_BATCHES_A_WORKER * config.data.num_workers + 1)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])
