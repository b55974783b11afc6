"""Checks of an output folder: what checkpoints and locks rely on."""

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from dgl_scale.doctor.finding import Finding

_MIB = 1 << 20
_GIB = 1 << 30
_WRITTEN = 64 * _MIB
# Exit status of the process that tries to take a lock that is held.
_TRY_LOCK = "import fcntl,sys\ntry: fcntl.flock(open(sys.argv[1]), fcntl.LOCK_EX | fcntl.LOCK_NB)\nexcept OSError: sys.exit(7)"


def check_folder(folder: Path) -> Iterator[Finding]:
    """All checks; they leave nothing. A folder that is not there yet is judged by the nearest one above it."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    subject = f"folder {folder}"
    try:
        scratch = Path(tempfile.mkdtemp(prefix=".doctor-", dir=existing))
    except OSError as error:
        yield Finding(subject, "fail", f"cannot write to {existing}: {error.strerror}", "choose another output, or mend its permissions")
        return
    try:
        yield Finding(subject, "ok", "can be written" if existing == folder else f"will be made in {existing}, which can be written")
        yield check_rename(scratch)
        yield check_lock(scratch)
        yield check_space(scratch)
        yield check_speed(scratch)
        yield check_clock(scratch)
    except OSError as error:
        yield Finding(subject, "fail", f"{error.strerror or error}", "choose another output")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def check_rename(scratch: Path) -> Finding:
    """A file that replaces another and a folder that takes its name, both synced."""
    (scratch / "old").write_bytes(b"old")
    (scratch / "new").write_bytes(b"new")
    os.replace(scratch / "new", scratch / "old")
    (scratch / "part").mkdir()
    (scratch / "part" / "file").write_bytes(b"whole")
    descriptor = os.open(scratch, os.O_RDONLY)
    begin = time.perf_counter()
    os.fsync(descriptor)
    seconds = time.perf_counter() - begin
    os.close(descriptor)
    os.rename(scratch / "part", scratch / "step")
    if (scratch / "old").read_bytes() != b"new" or (scratch / "step" / "file").read_bytes() != b"whole":
        return Finding("rename", "fail", "a renamed file is not the one that was renamed", "this file system cannot hold checkpoints")
    return Finding("rename", "ok", f"files and folders; fsync of a folder {1e3 * seconds:.0f} ms")


def check_lock(scratch: Path) -> Finding:
    """Whether a second process is refused a lock that this one holds."""
    path = scratch / "lock"
    with open(path, "w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        done = subprocess.run([sys.executable, "-c", _TRY_LOCK, str(path)], capture_output=True, timeout=60, check=False)
    if done.returncode != 7:
        return Finding(
            "lock", "warn", "two processes got one lock", "two runs in one folder will not be noticed; mount with locking (NFS: no nolock)"
        )
    return Finding("lock", "ok", "a second run in a folder is refused")


def check_space(scratch: Path) -> Finding:
    """Free space; a checkpoint of ViT-L/14's prompts is 0.3 GiB."""
    free = shutil.disk_usage(scratch).free
    if free < 2 * _GIB:
        return Finding("space", "warn", f"{free / _GIB:.1f} GiB free", "free some; a checkpoint takes up to 0.3 GiB")
    return Finding("space", "ok", f"{free / _GIB:.0f} GiB free")


def check_speed(scratch: Path) -> Finding:
    """Write and sync a file."""
    block = os.urandom(_MIB)
    begin = time.perf_counter()
    with open(scratch / "speed", "wb") as stream:
        for _ in range(_WRITTEN // _MIB):
            stream.write(block)
        stream.flush()
        os.fsync(stream.fileno())
    rate = _WRITTEN / _MIB / (time.perf_counter() - begin)
    if rate < 20:
        return Finding(
            "write speed", "warn", f"{rate:.0f} MiB/s", "checkpoints are written in the background; choose a faster folder if they pile up"
        )
    return Finding("write speed", "ok", f"{rate:.0f} MiB/s with fsync")


def check_clock(scratch: Path) -> Finding:
    """This machine's clock against the one that stamps its files (another machine's on a network file system)."""
    before = time.time()
    (scratch / "clock").write_bytes(b"")
    stamped = (scratch / "clock").stat().st_mtime
    skew = max(before - stamped, stamped - time.time(), 0.0)
    if skew > 5:
        return Finding(
            "clock", "warn", f"{skew:.0f} s from the file system's", "start an NTP service; times in logs of several machines will not fit"
        )
    return Finding("clock", "ok", f"within {max(skew, 1):.0f} s of the file system's")
