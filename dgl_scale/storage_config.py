"""How patient transfers from and to object storage and web servers are."""

from dgl_scale.config_section import PositiveFloat, PositiveInt, Section


class StorageConfig(Section):
    """Transfers from and to object storage and web servers."""

    scratch: str | None = None
    """Folder for the videos and shards that a task fetches or writes; null: the system's temporary folder."""
    max_video_gib: PositiveFloat = 4.0
    """A larger remote video costs itself."""
    attempts: PositiveInt = 8
    """Tries of a transfer that is cut, slow or corrupt, with growing pauses."""
    timeout_s: PositiveFloat = 60.0
    """Silence of a server that ends a try; an upload may take 10 s more for each MB."""
