"""Train DGL prompts: `deepspeed dgl_scale/train.py --config configs/quickstart.yaml [key.path=value …]`.

Also runs under `python` (one process), `torchrun` and `srun`, with the same arguments.
"""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dgl_scale.config import RunConfig
from dgl_scale.config_file import load_config
from dgl_scale.entry import config_parser, parse_arguments, positive_int, positive_ints, positive_number, run_command, show_config
from dgl_scale.errors import ExitCode, Interrupted

if TYPE_CHECKING:
    import torch

    from dgl_scale.data.index import SplitIndex
    from dgl_scale.data.tokenizer import Tokenizer
    from dgl_scale.model import DGL
    from dgl_scale.training.run import Validate

# Options of `--estimate` that are fields of `Assumptions`.
_ASSUMPTIONS = ("videos", "captions", "sample_bytes", "utilisation", "network_gbit")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, build, train; returns the exit code."""
    parser = config_parser("train", "Train DGL prompts over a frozen CLIP with DeepSpeed.")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: cuda where there is one")
    parser.add_argument(
        "--dry-run", action="store_true", help="build all, take a step of the largest shape, say memory and time; leaves nothing"
    )
    group = parser.add_argument_group("estimate", "memory, network, reading and time by arithmetic: no data, weights, GPU or processes")
    group.add_argument("--estimate", action="store_true", help="print it and stop")
    group.add_argument("--world-size", type=positive_ints, metavar="N,N,…", help="numbers of GPUs (default 1)")
    group.add_argument(
        "--videos", type=positive_int, metavar="N", help="of the training split (default: those of data.train, if it is here)"
    )
    group.add_argument("--captions", type=positive_number, metavar="N", help="a video (default: those of data.train, else 1)")
    group.add_argument("--sample-bytes", type=positive_number, metavar="N", help="of a stored video, as the estimate of a shard build says")
    group.add_argument("--utilisation", type=positive_number, metavar="F", help="share of the GPU's peak rate (default 0.4)")
    group.add_argument("--network-gbit", type=positive_number, metavar="N", help="Gbit/s that a GPU sends (default 12.5)")
    arguments = parse_arguments(parser, argv)
    assumed = {name: value for name in _ASSUMPTIONS if (value := getattr(arguments, name)) is not None}
    if (assumed or arguments.world_size) and not arguments.estimate:
        parser.error(f"--{next(iter(assumed), 'world_size').replace('_', '-')} is for --estimate")

    def work() -> int:
        config = load_config(RunConfig, arguments.config, arguments.overrides)
        if arguments.show_config:
            return show_config(config)
        if arguments.estimate:
            return _estimate(config, arguments.world_size or [1], assumed)
        # Imported here so that --help and --show-config stay instant.
        from dgl_scale.training.determinism import make_deterministic
        from dgl_scale.training.dry_run import dry_run
        from dgl_scale.training.engine import start_distributed, stop_distributed
        from dgl_scale.training.rendezvous import launch_facts
        from dgl_scale.training.run import run_training
        from dgl_scale.training.stop import StopRequest

        stop = StopRequest(config.training.max_minutes, config.training.preemption_file)
        if config.training.deterministic:
            make_deterministic()
        with stop.at_once():
            limits = config.training.rendezvous_timeout_s, config.training.hang_timeout_s
            device = start_distributed(arguments.device, launch_facts(config), limits[0], hang_timeout_s=limits[1])
        in_step = False
        try:
            if arguments.dry_run:
                dry_run(config, device)
            else:
                run_training(config, device, stop, build_validation)
            in_step = True
        except Interrupted:
            in_step = True
            raise
        finally:
            stop_distributed(gracefully=in_step)
        return ExitCode.DONE

    return run_command(work, debug=arguments.debug)


def _estimate(config: RunConfig, world_sizes: list[int], assumed: dict[str, Any]) -> int:
    from dgl_scale.training.estimate_table import estimate_lines
    from dgl_scale.training.run_estimate import Assumptions

    sys.stdout.writelines(f"{line}\n" for line in estimate_lines(config, world_sizes, Assumptions(**assumed)))
    return ExitCode.DONE


def build_validation(model: "DGL", index: "SplitIndex", tokenizer: "Tokenizer", config: RunConfig, device: "torch.device") -> "Validate":
    """The retrieval metrics of the validation split, each rank encoding its share of the videos."""
    from dgl_scale import distributed
    from dgl_scale.evaluation.embedding import encode_split
    from dgl_scale.evaluation.features import join_features
    from dgl_scale.evaluation.retrieval import flat_metrics, rank_features

    bounds = [index.num_videos * i // distributed.world_size() for i in range(distributed.world_size() + 1)]

    def validate() -> dict[str, float]:
        if any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
            # Under ZeRO-3 every forward is a collective, so all ranks must run the same batches: each encodes all.
            features = join_features([encode_split(model, index, tokenizer, start=0, stop=index.num_videos, config=config, device=device)])
            return flat_metrics(rank_features(features, config.evaluation))
        start, stop = bounds[distributed.rank()], bounds[distributed.rank() + 1]
        part = encode_split(model, index, tokenizer, start=start, stop=stop, config=config, device=device)
        features = join_features(distributed.gather_objects(part))
        return flat_metrics(rank_features(features, config.evaluation))

    return validate


if __name__ == "__main__":
    sys.exit(main())
