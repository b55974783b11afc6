"""The recipes of the datasets: complete configs that agree with METHOD's table, with the shards' configs and with their own comments."""

import re
from pathlib import Path

import pytest
import yaml

from dgl_scale.config import RunConfig
from dgl_scale.config_file import configs_folder, load_config
from dgl_scale.data.order import rank_places
from dgl_scale.model import build_model
from dgl_scale.model.estimate import largest_batch

RECIPES = sorted(configs_folder().glob("*_vit_*.yaml"))
CLIPS = {"b32": "ViT-B-32-quickgelu", "b16": "ViT-B-16-quickgelu", "l14": "ViT-L-14-quickgelu"}
# Dataset to latent space, lr, epochs, pairs a GPU, GPUs, frames, words: the published runs; the last two are derived from them.
PUBLISHED = {
    "msrvtt": ("transformer", 2e-3, 5, 128, 4, 12, 32),
    "vatex": ("linear", 5e-3, 10, 64, 8, 12, 32),
    "lsmdc": ("linear", 1e-2, 10, 64, 8, 12, 32),
    "activitynet": ("transformer", 1e-2, 10, 16, 8, 64, 64),
    "msvd": ("transformer", 2e-3, 5, 128, 4, 12, 32),
    "didemo": ("transformer", 1e-2, 10, 16, 8, 64, 64),
}
# Trained numbers by latent space, CLIP and frames.
TRAINED = {
    ("linear", "b32", 12): 827_392,
    ("linear", "b16", 12): 827_392,
    ("transformer", "b32", 12): 9_575_168,
    ("transformer", "b16", 12): 9_575_168,
    ("transformer", "b32", 64): 11_492_096,
    ("transformer", "b16", 64): 11_492_096,
    ("linear", "l14", 12): 1_676_800,
    ("transformer", "l14", 12): 17_649_408,
}


def test_every_dataset_has_a_recipe_for_every_clip() -> None:
    assert [path.stem for path in RECIPES] == sorted(f"{dataset}_vit_{clip}" for dataset in PUBLISHED for clip in CLIPS)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_the_published_one(path: Path) -> None:
    dataset, _, clip = path.stem.split("_")
    latent_space, lr, epochs, pairs, gpus, frames, words = PUBLISHED[dataset]
    config = load_config(RunConfig, path)
    assert (config.name, config.seed, config.model.clip, config.model.pretrained) == (path.stem, 42, CLIPS[clip], "openai")
    assert (config.model.latent_space, config.model.num_frames, config.data.max_words) == (latent_space, frames, words)
    prompts = (config.model.num_local_prompts, config.model.num_global_prompts)
    assert (*prompts, config.model.num_prefix_prompts, config.model.num_postfix_prompts) == (4, 4, 4, 4)
    optim = config.optim
    assert (optim.lr, optim.min_lr, optim.warmup_fraction, optim.betas, optim.eps) == (lr, 1e-8, 0.1, (0.9, 0.98), 1e-6)
    # A bound of 1 on the mean over GPUs of their own parts is a bound of as many as there are GPUs on the global gradient.
    assert (optim.weight_decay, optim.max_grad_norm) == (0.2, gpus)
    assert (config.training.epochs, config.training.global_batch_size) == (epochs, pairs * gpus)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_runs_where_its_comment_says(path: Path) -> None:
    header = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    assert any(line.startswith("# Source: ") for line in header)
    assert any(line.startswith(("# Differs: ", "# Source: none")) for line in header)
    gpus, gib, pairs = map(int, re.search(r"# Sizes: (\d+) GPUs of (\d+) GiB with (\d+) pairs each", "\n".join(header)).groups())
    config = load_config(RunConfig, path)
    for world in (1, gpus):
        sizes = [len(range(place.start, place.stop)) for place in rank_places(config.training.global_batch_size, 0, world, None)]
        assert sum(sizes) == config.training.global_batch_size // world
    assert config.training.global_batch_size == gpus * pairs
    assert pairs % config.training.micro_batch_size == 0
    model = build_model(config.model, device="meta")
    clip = path.stem.rpartition("_")[2]
    trained = sum(parameter.numel() for _, parameter in model.trainable_parameters())
    assert trained == TRAINED.get((config.model.latent_space, clip, config.model.num_frames), trained)
    # A seventh is left to the allocator, the CUDA context and frames on their way.
    fitting = largest_batch(config.model, model.shape, 0.85 * gib * (1 << 30), caption_length=config.data.max_words, bytes_per_value=2)
    assert config.training.micro_batch_size <= fitting
    assert f"configs/{path.name}" in "\n".join(header)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_reads_the_shards_that_the_dataset_s_config_writes(path: Path) -> None:
    dataset = path.stem.partition("_")[0]
    shards = yaml.safe_load((configs_folder() / "shards" / f"{dataset}.yaml").read_text(encoding="utf-8"))
    splits = {*shards[dataset], *(["validation"] if shards.get("validation_videos") else [])}
    data = load_config(RunConfig, path).data
    assert data.train == f"{shards['output']}/train"
    for folder in (data.validation, data.test):
        output, split = folder.rsplit("/", 1)
        assert output == shards["output"]
        assert split in splits
