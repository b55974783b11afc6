"""`dgl-scale bench evaluation`: workers that encode a split beside the model's bare forward, all in one run.

Every contender uses one CPU thread a model. The limit: the same model over the same videos, already decoded, in this
process. A worker reads the shard, checks hashes, decodes and normalises too, and sends its features through Ray.
"""

import json
import statistics
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from dgl_scale.batch import normalise_frames
from dgl_scale.bench.model import describe_machine
from dgl_scale.bench.synthetic_split import write_synthetic_split
from dgl_scale.config import DataConfig, EvaluationConfig, ModelConfig, RunConfig, TrainingConfig
from dgl_scale.data.index import load_split
from dgl_scale.data.reader import SampleReader
from dgl_scale.data.tokenizer import load_tokenizer
from dgl_scale.entry import Parser, positive_int, run_command
from dgl_scale.errors import ExitCode
from dgl_scale.evaluation.embedding import build_model_of
from dgl_scale.evaluation.feature_keys import prompts_digest
from dgl_scale.evaluation.units import Unit, read_unit, split_units
from dgl_scale.evaluation.workers import WorkerJob, Workers
from dgl_scale.files import write_json
from dgl_scale.model.frozen_clip import EvaluatedModel
from dgl_scale.ray_cluster import ray_cluster

_STORED_FRAMES = 30
_SIDE = 224
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Contender:
    """Who encodes the videos.

    Attributes:
        seconds: of every round.
        videos_per_second: of the median round.
    """

    name: str
    seconds: list[float]
    videos_per_second: float


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, measure, print; returns the exit code."""
    parser = Parser(prog="dgl-scale bench evaluation", description="Encoding by workers beside the model's own forward, in one run.")
    parser.add_argument("--clip", default="ViT-B-32-quickgelu", metavar="NAME", help="open_clip model or model-config file, random weights")
    parser.add_argument("--num-frames", type=positive_int, default=12, metavar="T")
    parser.add_argument("--videos", type=positive_int, default=16, metavar="N", help="videos a round")
    parser.add_argument("--batch", type=positive_int, default=4, metavar="B", help="evaluation.batch_size")
    parser.add_argument("--rounds", type=positive_int, default=3, help="rounds; each contender once a round, the median counts")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    arguments = parser.parse_args(argv)
    return run_command(lambda: _run(arguments), debug=arguments.debug)


def _run(arguments: Namespace) -> int:
    sys.stdout.write(f"{describe_machine('cpu')}\n")
    contenders = measure(arguments)
    bare, one, two = (contender.videos_per_second for contender in contenders)
    ratios = {"one worker / bare forward": one / bare, "two workers / one worker": two / one}
    for contender in contenders:
        sys.stdout.write(f"  {contender.name:<24}{contender.videos_per_second:>8.2f} videos/s\n")
    for name, ratio in ratios.items():
        sys.stdout.write(f"  {name:<32}{ratio:>6.3f}\n")
    if arguments.json:
        plain = json.loads(json.dumps(vars(arguments), default=str))
        report = {
            "machine": describe_machine("cpu"),
            "arguments": plain,
            "contenders": [asdict(one) for one in contenders],
            "ratios": ratios,
        }
        write_json(arguments.json, report)
    return ExitCode.DONE


def measure(arguments: Namespace) -> list[Contender]:
    """Bare forward, one worker, two workers."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "test"
        write_synthetic_split(folder, num_videos=arguments.videos, num_frames=_STORED_FRAMES, side=_SIDE)
        config = _config(arguments, folder)
        units = split_units(str(folder), arguments.videos, arguments.batch)
        threads = torch.get_num_threads()
        stack.callback(torch.set_num_threads, threads)
        torch.set_num_threads(1)
        model = build_model_of(config, frozen=False, device=_CPU)
        contenders: dict[str, Callable[[], object]] = {"bare forward": _bare_forward(model, config, folder, units)}
        stack.enter_context(ray_cluster(3))
        for count in (1, 2):
            contenders[f"{count} worker{'s' * (count > 1)}"] = _workers(stack, config, model, units, count)
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(arguments.rounds):
            for name, encode in contenders.items():
                started = time.perf_counter()
                encode()
                seconds[name].append(time.perf_counter() - started)
    return [Contender(name, values, arguments.videos / statistics.median(values)) for name, values in seconds.items()]


def _config(arguments: Namespace, folder: Path) -> RunConfig:
    return RunConfig(
        name="bench",
        model=ModelConfig(clip=arguments.clip, num_frames=arguments.num_frames),
        data=DataConfig(test=str(folder), max_words=16),
        training=TrainingConfig(global_batch_size=1, max_steps=1),
        evaluation=EvaluationConfig(batch_size=arguments.batch),
    )


def _bare_forward(model: EvaluatedModel, config: RunConfig, folder: Path, units: Sequence[Unit]) -> Callable[[], object]:
    """The model over the videos and captions, decoded beforehand; run once, to warm it up."""
    index, tokenizer = load_split(folder), load_tokenizer(config.model.clip, config.data.max_words)
    reader = SampleReader(index)
    inputs = []
    for unit in units:
        read = read_unit(unit, index, reader, model.image_size, config.model.num_frames, pin_memory=False)
        assert read.frames is not None
        frames = normalise_frames(read.frames, model.image_mean, model.image_std, torch.float32)
        inputs.append((frames, tokenizer([text for texts in read.captions for text in texts])))
    reader.close()

    @torch.no_grad()
    def forward() -> None:
        for frames, tokens in inputs:
            model.encode_video(frames)
            model.encode_text(tokens)

    forward()
    return forward


def _workers(stack: ExitStack, config: RunConfig, model: EvaluatedModel, units: Sequence[Unit], count: int) -> Callable[[], object]:
    """So many workers over the split; run once, so that all have loaded the model."""
    config = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"num_workers": count})})
    workers = stack.enter_context(closing(Workers(WorkerJob(config, False, "cpu"))))
    digest, prompts = prompts_digest(model), model.prompts_state()

    def encode() -> None:
        assert len(list(workers.encode(units, digest, prompts))) == len(units)

    # Once for each worker, so that the last of them has loaded the model too.
    for _ in range(count):
        encode()
    return encode
