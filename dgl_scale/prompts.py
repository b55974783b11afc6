"""`dgl-scale prompts`: what a prompts file holds, checkpoints of the published implementation, and a model hub."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from dgl_scale.config import ModelConfig
from dgl_scale.entry import Parser, positive_int, run_command
from dgl_scale.errors import ExitCode

_DIGEST_CHARACTERS = 12
_SAID_ELSEWHERE = {"shards", "dataset", "config_sha256", "training", "validation", "step"}


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, do it and print; returns the exit code."""
    arguments = _parser().parse_args(argv)
    return run_command(lambda: arguments.work(arguments), debug=arguments.debug)


def _parser() -> Parser:
    parser = Parser(
        prog="dgl-scale prompts", description="Look into prompts files; exchange them with the published DGL and with a model hub."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="{info,card,import,export,push,pull}")
    info = commands.add_parser("info", help="model, variant, counts, training data and metrics of a prompts file")
    info.add_argument("file", help="prompts.safetensors")
    info.set_defaults(work=_info)

    importing = commands.add_parser("import", help="a checkpoint of the published implementation (.pth.tar) to a prompts file")
    importing.add_argument("file", help="the checkpoint")
    importing.add_argument("--clip", required=True, metavar="NAME", help="the CLIP it was trained over, such as ViT-B-32-quickgelu")
    importing.add_argument("--pretrained", default="openai", metavar="TAG|FILE", help="its weights; the checkpoint itself will do (openai)")
    importing.add_argument("--output", default="prompts.safetensors", metavar="FILE", help="where to (prompts.safetensors)")
    importing.add_argument(
        "--num-text-prompts", type=positive_int, default=8, metavar="N", help="its --text_prompt_length, prefix and postfix (8)"
    )
    importing.add_argument(
        "--num-frames", type=positive_int, metavar="T", help="its --max_frames (transformer: as its table says; linear: 12)"
    )
    features = get_args(ModelConfig.model_fields["video_feature"].annotation)
    importing.add_argument("--video-feature", choices=features, default="global_0", help="its --visual_output_type (global_0)")
    importing.set_defaults(work=_import)

    exporting = commands.add_parser("export", help="prompts and their CLIP to a checkpoint that the published implementation loads")
    exporting.add_argument("file", help="prompts.safetensors")
    exporting.add_argument("--output", required=True, metavar="FILE", help="the checkpoint to write (.pth.tar)")
    exporting.add_argument("--clip", metavar="NAME", help="the CLIP, if it is not where the prompts file says")
    exporting.add_argument("--pretrained", metavar="TAG|FILE", help="its weights, likewise")
    exporting.set_defaults(work=_export)
    card = commands.add_parser("card", help="print a model card for a prompts file")
    card.add_argument("file", help="prompts.safetensors")
    card.set_defaults(work=_card)

    pushing = commands.add_parser("push", help="upload a prompts file to a model hub, with a card where there is none")
    pushing.add_argument("file", help="prompts.safetensors")
    pushing.add_argument("repository", metavar="OWNER/NAME", help="made if it is missing")
    pushing.add_argument("--private", action="store_true", help="a repository that is made is private")
    pushing.set_defaults(work=_push)
    for command in (card, pushing):
        command.add_argument("--base-model", metavar="OWNER/NAME", help="the CLIP's own name on the hub, for the card")
        command.add_argument("--license", metavar="NAME", help="for the card, such as apache-2.0 (none is claimed)")

    pulling = commands.add_parser("pull", help="download a prompts file from a model hub")
    pulling.add_argument("repository", metavar="OWNER/NAME")
    pulling.add_argument("--revision", metavar="NAME", help="a branch, tag or commit (the main branch)")
    pulling.add_argument("--output", default="prompts.safetensors", metavar="FILE", help="where to (prompts.safetensors)")
    pulling.set_defaults(work=_pull)
    for command in (info, card, importing, exporting, pushing, pulling):
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


# The engines are imported inside, so that --help stays instant.


def _info(arguments: argparse.Namespace) -> int:
    from dgl_scale.model.prompts import num_reached
    from dgl_scale.model.weights import read_prompts

    metadata, prompts = read_prompts(arguments.file)
    config: ModelConfig = metadata["model"]
    total, reached = sum(tensor.numel() for tensor in prompts.values()), num_reached(config, prompts)
    lines = {
        "backbone": f"{metadata['clip']} (weights {_short(metadata['backbone_sha256'])})",
        **_describe(config),
        "parameters": f"{total:,} trained, {f'{reached:,}' if reached < total else 'all'} reached by gradients",
        **_history(metadata["extra"]),
        "made by": f"dgl_scale {metadata['dgl_scale']}",
    }
    for name, value in lines.items():
        sys.stdout.write(f"{name + ':':<16}{value}\n")
    for name, tensor in prompts.items():
        sys.stdout.write(f"  {name:<40} {' x '.join(map(str, tensor.shape))}\n")
    return ExitCode.DONE


def _import(arguments: argparse.Namespace) -> int:
    from dgl_scale.model.published_checkpoint import import_checkpoint

    done = import_checkpoint(
        Path(arguments.file),
        Path(arguments.output),
        clip=arguments.clip,
        pretrained=arguments.pretrained,
        num_text_prompts=arguments.num_text_prompts,
        num_frames=arguments.num_frames,
        video_feature=arguments.video_feature,
    )
    sys.stdout.write(f"{arguments.output}: {done.num_parameters:,} trained parameters over {arguments.clip}\n")
    for name, value in _describe(done.config).items():
        sys.stdout.write(f"{name + ':':<16}{value}\n")
    if done.checkpoint_digest != done.backbone_digest:
        digests = f"weights {_short(done.checkpoint_digest)} in the checkpoint, {_short(done.backbone_digest)} as {arguments.clip}"
        sys.stdout.write(f"{'note:':<16}the two CLIPs are equal in float16 only ({digests})\n")
    return ExitCode.DONE


def _export(arguments: argparse.Namespace) -> int:
    from dgl_scale.model.published_checkpoint import export_prompts

    options = export_prompts(Path(arguments.file), Path(arguments.output), clip=arguments.clip, pretrained=arguments.pretrained)
    sys.stdout.write(f"{arguments.output}: load it with --resume and {' '.join(options)}\n")
    return ExitCode.DONE


def _card(arguments: argparse.Namespace) -> int:
    from dgl_scale.model.model_card import model_card
    from dgl_scale.model.weights import read_prompts_metadata

    metadata = read_prompts_metadata(arguments.file)
    sys.stdout.write(model_card(metadata, base_model=arguments.base_model, model_license=arguments.license))
    return ExitCode.DONE


def _push(arguments: argparse.Namespace) -> int:
    from dgl_scale.model.hub import push_prompts

    options = {"private": arguments.private, "base_model": arguments.base_model, "model_license": arguments.license}
    sys.stdout.write(f"{push_prompts(arguments.file, arguments.repository, **options)}\n")
    return ExitCode.DONE


def _pull(arguments: argparse.Namespace) -> int:
    from dgl_scale.model.hub import pull_prompts

    pull_prompts(arguments.repository, arguments.output, revision=arguments.revision)
    sys.stdout.write(f"{arguments.output}\n")
    return ExitCode.DONE


def _describe(config: ModelConfig) -> dict[str, str]:
    return {
        "latent space": f"{config.latent_space}, depth {config.prompt_depth or 'all layers'}, {config.num_frames} frames",
        "prompts": f"{config.num_global_prompts} global, {config.num_local_prompts} local a frame, "
        f"{config.num_prefix_prompts} + {config.num_postfix_prompts} text",
        "video feature": config.video_feature,
    }


def _history(extra: Mapping[str, Any]) -> dict[str, str]:
    """What training wrote beside the prompts, as far as it is there."""
    lines = {}
    if "shards" in extra:
        dataset = f"{extra['dataset']}, " if extra.get("dataset") else ""
        lines["trained on"] = f"{dataset}shards {_short(extra['shards'])}"
    if "step" in extra:
        total = extra.get("training", {}).get("total_steps")
        lines["step"] = f"{extra['step']}" + (f" of {total}" if total else "")
    if "training" in extra:
        shown = {key.rpartition(".")[2]: value for key, value in extra["training"].items() if key != "total_steps"}
        settings = ", ".join(f"{key} {value}" for key, value in shown.items())
        lines["training"] = f"{settings} (config {_short(extra.get('config_sha256'))})"
    if "validation" in extra:
        lines["validation"] = ", ".join(f"{name} {value:.1f}" for name, value in extra["validation"].items())
    return lines | {key: str(value) for key, value in extra.items() if key not in _SAID_ELSEWHERE and not isinstance(value, dict | list)}


def _short(digest: object) -> str:
    return str(digest)[:_DIGEST_CHARACTERS] if digest else "unknown"
