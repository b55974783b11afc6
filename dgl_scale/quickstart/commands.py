"""The three engine commands of the quickstart, as a cluster user types them: pure functions."""

import importlib.util
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dgl_scale.config_file import configs_folder

_PACKAGE = Path(__file__).resolve().parent.parent
_CLIP = _PACKAGE / "quickstart" / "clip"
DEFAULT_FOLDER = Path("quickstart")


@dataclass(frozen=True)
class Place:
    """Where the quickstart runs.

    Attributes:
        folder: of its videos, shards, runs and report.
        checkout: the repository's root, if the current folder is it; commands are then the short ones.
    """

    folder: Path
    checkout: Path | None

    @property
    def world(self) -> Path:
        """Folder of the clips and their annotations."""
        return self.folder / "world"

    @property
    def shards(self) -> Path:
        """Folder of the splits' shard folders."""
        return self.folder / "shards"

    @property
    def runs(self) -> Path:
        """Folder of run folders."""
        return self.folder / "runs"

    @property
    def logs(self) -> Path:
        """Folder of the commands' output."""
        return self.folder / "logs"

    @property
    def is_default(self) -> bool:
        """Whether the paths in `configs/` are right as they are."""
        return self.checkout is not None and self.folder == DEFAULT_FOLDER


@dataclass(frozen=True)
class RunChoice:
    """One training run: a latent space, a seed, and overrides of its config beyond the name."""

    latent_space: str
    seed: int
    overrides: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Of the run folder."""
        return f"{self.latent_space}-seed{self.seed}"

    @property
    def config(self) -> str:
        """Config file, relative to the repository."""
        return "configs/quickstart.yaml" if self.latent_space == "transformer" else f"configs/quickstart_{self.latent_space}.yaml"


def find_place(folder: Path) -> Place:
    """The place for `folder`, given the current folder."""
    root = _PACKAGE.parent
    in_checkout = Path.cwd().resolve() == root and (root / "pyproject.toml").is_file()
    return Place(folder, root if in_checkout else None)


def build_command(place: Place, address: str) -> list[str]:
    """Video files to shards, as a Ray job."""
    command = ["ray", "job", "submit", "--address", address]
    overrides = []
    if not place.is_default:
        world, shards = place.world.resolve(), place.shards.resolve()
        overrides = [f"annotations={world / 'annotations.jsonl'}", f"videos={world}", f"output={shards}"]
    if place.checkout is None:
        spec = importlib.util.find_spec("shard_tools")
        script = str(Path(str(spec.origin)).with_name("build.py")) if spec else "shard_tools/build.py"
        return [*command, "--", sys.executable, script, "--config", _config(place, "configs/shards/quickstart.yaml"), *overrides]
    return [
        *command,
        "--working-dir",
        ".",
        "--",
        "python",
        "shard_tools/build.py",
        "--config",
        "configs/shards/quickstart.yaml",
        *overrides,
    ]


def train_command(place: Place, choice: RunChoice, num_processes: int, device: str, port: int) -> list[str]:
    """Shards to prompts, under DeepSpeed."""
    count = "--num_gpus" if device == "cuda" else "--num_accelerators"
    command = [
        "deepspeed",
        count,
        str(num_processes),
        "--master_port",
        str(port),
        _script(place, "train.py"),
        "--config",
        _config(place, choice.config),
    ]
    return [*command, *run_overrides(place, choice), f"--device={device}"]


def evaluate_command(place: Place, choice: RunChoice, workers: int, device: str) -> list[str]:
    """Prompts to a retrieval table, by Ray workers."""
    command = ["python" if place.checkout else sys.executable, _script(place, "evaluate.py"), "--config", _config(place, choice.config)]
    return [
        *command,
        *run_overrides(place, choice),
        "--checkpoint",
        str(place.runs / choice.name),
        "--workers",
        str(workers),
        f"--device={device}",
    ]


def run_overrides(place: Place, choice: RunChoice) -> list[str]:
    """What differs from the config file: name, seed, and paths where they are not the default ones."""
    overrides = [f"name={choice.name}", f"seed={choice.seed}", *choice.overrides]
    if not place.is_default:
        overrides += [f"output={place.runs}", *(f"data.{split}={place.shards / split}" for split in ("train", "validation", "test"))]
    if place.checkout is None:
        overrides += [f"model.clip={_CLIP / 'tiny_clip.json'}", f"model.pretrained={_CLIP / 'tiny_clip.safetensors'}"]
    return overrides


def engine_environment(num_processes: int, device: str) -> dict[str, str]:
    """Environment of the engine commands: this Python's programs first, cores shared fairly; changes no result."""
    path = str(Path(sys.executable).parent) + os.pathsep + os.environ.get("PATH", "")
    environment = {"PATH": path, "RAY_USAGE_STATS_ENABLED": "0", "PYTHONUNBUFFERED": "1"}
    if device == "cpu":
        environment["DS_ACCELERATOR"] = "cpu"
        environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // num_processes))
        # Large temporaries go back and forth between step and kernel otherwise: page faults cost a tenth of the time.
        environment |= {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "8000000000", "MALLOC_TOP_PAD_": "268435456"}
    return environment


def environment_prefix(environment: dict[str, str], names: Sequence[str] = ("DS_ACCELERATOR", "OMP_NUM_THREADS")) -> str:
    """`NAME=value ` words to show before a command."""
    return "".join(f"{name}={environment[name]} " for name in names if name in environment)


def _script(place: Place, name: str) -> str:
    return f"dgl_scale/{name}" if place.checkout else str(_PACKAGE / name)


def _config(place: Place, name: str) -> str:
    return name if place.checkout else str(configs_folder() / name.removeprefix("configs/"))
