"""Train DGL prompts: `deepspeed dgl_scale/train.py --config configs/quickstart.yaml [key.path=value …]`.

Also runs under `python` (one process), `torchrun` and `srun`, with the same arguments.
"""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dgl_scale.config import RunConfig
from dgl_scale.config_file import load_config
from dgl_scale.entry import config_parser, parse_arguments, run_command, show_config
from dgl_scale.errors import ExitCode, Interrupted

if TYPE_CHECKING:
    import torch

    from dgl_scale.data.index import SplitIndex
    from dgl_scale.data.tokenizer import Tokenizer
    from dgl_scale.model import DGL
    from dgl_scale.training.run import Validate


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, build, train; returns the exit code."""
    parser = config_parser("train", "Train DGL prompts over a frozen CLIP with DeepSpeed.")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: cuda where there is one")
    parser.add_argument(
        "--dry-run", action="store_true", help="build all, take a step of the largest shape, say memory and time; leaves nothing"
    )
    arguments = parse_arguments(parser, argv)

    def work() -> int:
        config = load_config(RunConfig, arguments.config, arguments.overrides)
        if arguments.show_config:
            return show_config(config)
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
            device = start_distributed(arguments.device, launch_facts(config), config.training.rendezvous_timeout_s)
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
