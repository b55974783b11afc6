"""A finished build without Ray: what the driver does, in this process."""

from collections.abc import Sequence
from pathlib import Path

from dgl_scale.shards_config import ShardsConfig
from shard_tools.annotations.videos import AnnotatedVideo
from shard_tools.build_record import BuildRecord, write_shard_lists
from shard_tools.plan import plan_shards
from shard_tools.writer import build_shard


def finish_build(videos: Sequence[AnnotatedVideo], config: ShardsConfig, samples_per_shard: int) -> Path:
    """Build all shards of the videos into the config's output folder, with lists and record; returns the folder."""
    plan = plan_shards(videos, config.dataset, samples_per_shard, 0, None)
    record = BuildRecord(config.output, config, plan.annotations_sha256)
    record.begin()
    shards = [shard for planned in plan for shard in build_shard(planned, config, config.output)]
    for split in plan.splits:
        write_shard_lists(str(Path(config.output) / split), [shard for shard in shards if shard.split == split])
    record.end("complete", shards, 0)
    return Path(config.output)
