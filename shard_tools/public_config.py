"""A build's config without what may be secret in its locations."""

from typing import Any

from dgl_scale.shards_config import ShardsConfig
from dgl_scale.storage.urls import public_url


def public_config(config: ShardsConfig) -> ShardsConfig:
    """The config with its locations as they may be shown and stored."""
    locations: dict[str, Any] = {
        name: public_url(value) for name in ("annotations", "videos", "output") if (value := getattr(config, name))
    }
    section = config.dataset_section
    if section is not None:
        locations[config.format] = section.with_files(lambda key, path: public_url(path))
    return config.model_copy(update=locations)
