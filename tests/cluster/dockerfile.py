"""Reads a Dockerfile and carries it out in a folder that holds a system, without a builder of containers."""

import os
import shlex
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Instruction:
    """A line of a Dockerfile, continuations joined: `RUN`, and what is behind it."""

    name: str
    text: str


@dataclass
class Image:
    """What instructions have set so far, in the system below `root`."""

    root: Path
    environment: dict[str, str]
    folder: str = "/"
    user: str = "0:0"
    shared: dict[str, str] = field(default_factory=dict)
    """Path there to a path of this machine that commands see there, such as that of a package index."""

    def run(self, command: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Run a shell command there, as the user and in the folder that are set; mounts end with it."""
        mounts = [f"mount --rbind /dev {shlex.quote(str(self.root))}/dev", f"mount -t proc proc {shlex.quote(str(self.root))}/proc"]
        for there, here in self.shared.items():
            target = self.root / there.lstrip("/")
            if Path(here).is_dir():
                target.mkdir(parents=True, exist_ok=True)
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.touch()
            mounts.append(f"mount --bind {shlex.quote(here)} {shlex.quote(str(target))}")
        enter = ["chroot", f"--userspec={self.user}", str(self.root), "/bin/sh", "-c", f"cd {shlex.quote(self.folder)} && {command}"]
        script = " && ".join([*mounts, f"exec {shlex.join(enter)}"])
        words = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", script]
        return subprocess.run(words, env=self.environment | more, capture_output=True, text=True, timeout=1500, check=False)


def read_dockerfile(path: Path) -> list[Instruction]:
    """Its instructions, in order."""
    lines = [line for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [Instruction(*line.split(maxsplit=1)) for line in joined]


def carry_out(instructions: list[Instruction], image: Image, source: Path) -> None:
    """Do what the instructions say; `FROM` is the system that is there.

    Args:
        source: the folder from which `COPY` copies.
    """
    for instruction in instructions:
        words = shlex.split(instruction.text)
        if instruction.name == "RUN":
            done = image.run(instruction.text)
            assert done.returncode == 0, f"RUN {instruction.text}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        elif instruction.name == "ENV":
            for word in words:
                name, _, value = word.partition("=")
                image.environment[name] = value.replace("$PATH", image.environment["PATH"])
        elif instruction.name == "WORKDIR":
            image.folder = words[0]
            (image.root / words[0].lstrip("/")).mkdir(parents=True, exist_ok=True)
        elif instruction.name == "COPY":
            *names, target = words
            for name in names:
                _copy(source / name, image.root / os.path.join(image.folder, target).lstrip("/"))
        elif instruction.name == "USER":
            image.user = words[0]
        else:
            assert instruction.name in ("FROM", "CMD"), f"{instruction.name} is not carried out"


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target / source.name if target.is_dir() else target)
