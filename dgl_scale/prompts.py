"""`dgl-scale prompts info FILE`: what a prompts file holds."""

import sys
from collections.abc import Sequence

from dgl_scale.entry import Parser, run_command
from dgl_scale.errors import ExitCode


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and print; returns the exit code."""
    parser = Parser(prog="dgl-scale prompts", description="Say what a prompts file holds.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="info")
    info = commands.add_parser("info", help="model, variant, counts and training data of a prompts file")
    info.add_argument("file", help="prompts.safetensors")
    info.add_argument("--debug", action="store_true", help="show the traceback of an error")
    arguments = parser.parse_args(argv)
    return run_command(lambda: _print_info(arguments.file), debug=arguments.debug)


def _print_info(file: str) -> int:
    # Imported here so that --help stays instant.
    from safetensors import safe_open

    from dgl_scale.model.weights import read_prompts_metadata

    metadata = read_prompts_metadata(file)
    config = metadata["model"]
    lines = {
        "backbone": f"{metadata['clip']} (weights {metadata['backbone_sha256'][:12] or 'unknown'})",
        "latent space": f"{config.latent_space}, depth {config.prompt_depth or 'all layers'}, {config.num_frames} frames",
        "prompts": f"{config.num_global_prompts} global, {config.num_local_prompts} local a frame, "
        f"{config.num_prefix_prompts} + {config.num_postfix_prompts} text",
        "video feature": config.video_feature,
        "made by": f"dgl_scale {metadata['dgl_scale']}",
        **{key: value for key, value in metadata["extra"].items() if not isinstance(value, dict | list)},
    }
    for name, value in lines.items():
        sys.stdout.write(f"{name + ':':<16}{value}\n")
    with safe_open(file, framework="pt") as tensors:
        shapes = {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118 - no mapping
    for name, shape in shapes.items():
        sys.stdout.write(f"  {name:<40} {' x '.join(map(str, shape))}\n")
    return ExitCode.DONE
