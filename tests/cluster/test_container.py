"""The image: linted, the same for Apptainer, and its Dockerfile carried out line by line in a bare system."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.dockerfile import Image, Instruction, carry_out, read_dockerfile

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "cluster" / "container" / "Dockerfile"
APPTAINER = ROOT / "cluster" / "container" / "apptainer.def"


def texts(name: str) -> list[str]:
    return [instruction.text for instruction in read_dockerfile(DOCKERFILE) if instruction.name == name]


def sections() -> dict[str, list[str]]:
    """The lines of each section of the definition."""
    found: dict[str, list[str]] = {"": []}
    name = ""
    for line in APPTAINER.read_text().splitlines():
        if line.startswith("%"):
            name = line[1:]
            found[name] = []
        elif line.strip() and not line.startswith("#"):
            found[name].append(line.strip())
    return found


def test_the_linter_has_nothing_to_say() -> None:
    linter = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([linter, "--failure-threshold", "style", DOCKERFILE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_image_has_a_fixed_base_and_ends_as_a_user_without_rights() -> None:
    (base,) = texts("FROM")
    assert re.fullmatch(r"nvidia/cuda:\d+\.\d+\.\d+-base-\w+[\d.]+", base)
    # Kubernetes can tell that a number is not root's, and cannot of a name.
    assert texts("USER")[-1] == "10001:10001"
    assert any("useradd --uid 10001 " in text for text in texts("RUN"))
    assert not [text for text in texts("RUN") if "pip install" in text and "PIP_CONSTRAINT=" in text]
    assert any("PIP_CONSTRAINT=/opt/dgl_scale/constraints.txt" in text for text in texts("ENV"))


def test_only_what_is_copied_is_sent_to_the_builder() -> None:
    ignored = DOCKERFILE.with_name("Dockerfile.dockerignore").read_text().splitlines()
    copied = {name for text in texts("COPY") for name in text.split()[:-1]}
    assert {line[1:] for line in ignored if line.startswith("!")} == copied
    assert all((ROOT / name).exists() for name in copied)


def test_apptainer_s_image_is_made_by_the_same_steps() -> None:
    definition = sections()
    assert definition[""] == ["Bootstrap: docker", f"From: {texts('FROM')[0]}"]
    copied = [name for text in texts("COPY") for name in text.split()[:-1]]
    assert definition["files"] == [f"{name} /opt/dgl_scale/{name}" for name in copied]
    steps = [" ".join(step.split()) for text in texts("RUN") for step in text.split(" && ")]
    # There whoever runs it is the user.
    steps = [step for step in steps if not step.startswith(("useradd ", "chown "))]
    exported = [f"export {name}" for text in texts("ENV") for name in text.split()]
    assert [line for line in definition["post"] if not line.startswith(("set -e", "export ", "cd "))] == steps
    assert definition["environment"] == exported
    assert [line for line in definition["post"] if line.startswith("export ")] == exported[:-1]


def test_a_dockerfile_is_read_as_a_builder_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "Dockerfile"
    path.write_text("FROM a\n\n# a word\nRUN one \\\n    # hidden\n    && two\nENV A=1 \\\n    B=$PATH\n".replace("    # hidden\n", ""))
    assert read_dockerfile(path) == [
        Instruction("FROM", "a"),
        Instruction("RUN", "one      && two"),
        Instruction("ENV", "A=1      B=$PATH"),
    ]


def why_not() -> str | None:
    if os.environ.get("DGL_TEST_CONTAINER") != "1":
        return "`make test-container` starts it: a system and all packages are fetched"
    if os.geteuid() != 0 or not shutil.which("debootstrap") or not shutil.which("unshare"):
        return "needs root, debootstrap and unshare"
    return None


@pytest.fixture
def bare_system(tmp_path: Path) -> Iterator[Path]:
    """A folder that holds a minimal Debian; of some GB when the test is done."""
    suite = os.environ.get("DGL_TEST_CONTAINER_SUITE", "bookworm")
    subprocess.run(["debootstrap", "--variant=minbase", suite, str(tmp_path / "root")], check=True, capture_output=True, timeout=900)
    yield tmp_path / "root"
    shutil.rmtree(tmp_path / "root")


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_the_dockerfile_s_steps_make_a_system_in_which_the_quickstart_runs(bare_system: Path) -> None:
    # How this machine reaches its package index.
    settings = {name: value for name, value in os.environ.items() if name.startswith("PIP_") and name != "PIP_CONSTRAINT"}
    shared = {f"/shared/{name}": value for name, value in settings.items() if os.path.isabs(value) and os.path.exists(value)}
    settings |= {path.rpartition("/")[2]: path for path in shared}
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    image = Image(bare_system, {"PATH": path, "HOME": "/root", **settings}, shared=shared)
    carry_out(read_dockerfile(DOCKERFILE), image, ROOT)

    image.environment["HOME"] = "/home/dgl"
    for command in ("dgl-scale --help", "pip check", "dgl-scale quickstart --reduced"):
        done = image.run(command, OMP_NUM_THREADS="1")
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    assert "R@1" in done.stdout
    assert image.run("bash --login -c 'command -v ray'").stdout == "/opt/venv/bin/ray\n"
    whose = image.run("id --user; touch /opt/venv/mine")
    assert whose.stdout.strip() == "10001" and "Permission denied" in whose.stderr
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    frozen = dict(line.split("==") for line in image.run("pip freeze --exclude-editable").stdout.splitlines() if "==" in line)
    names = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pinned.items()}
    found = {re.sub(r"[-_.]+", "-", name).lower(): version.partition("+")[0] for name, version in frozen.items()}
    assert all(names.get(name, version) == version for name, version in found.items())
    assert {"torch", "deepspeed", "ray", "s3fs"} <= set(found) & set(names)
