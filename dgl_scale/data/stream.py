"""An endless stream of samples out of WebDataset shards that have no index. The door of webdataset for reading.

Each source has an endless sequence of shards: all of them in a random order, then all in another one, and so on.
Stream g of G reads places g, g + G, g + 2G … of it. So at any moment the streams read different shards, and a run
that goes on at another step, or with another number of streams, only begins further on in the same sequence.
"""

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dgl_scale.config import StreamingConfig
from dgl_scale.errors import ConfigError, DataError
from dgl_scale.storage.clients import NotThereError
from dgl_scale.storage.storage import Storage
from dgl_scale.storage.urls import SCHEMES, is_url, scheme_of, scrub

_PIPE = "pipe:"


@dataclass(frozen=True)
class Source:
    """Shards that are read alike.

    Attributes:
        shards: paths, URLs or `pipe:` commands.
        samples_per_shard: on the average, as stated.
        share: of the samples of a batch, on the average.
    """

    shards: tuple[str, ...]
    samples_per_shard: float
    share: float

    def first_place(self, samples: int) -> int:
        """The place in the sequence of shards where a run is after so many samples of all sources."""
        return int(samples * self.share / self.samples_per_shard)

    def shard_names(self) -> list[str]:
        """The shards fit to be shown."""
        return [shard_name(shard) for shard in self.shards]


@dataclass(frozen=True)
class RawSample:
    """A sample as it lies in its shard.

    Attributes:
        members: extension to content.
    """

    key: str
    shard: str
    members: dict[str, bytes]


def load_sources(config: StreamingConfig) -> list[Source]:
    """Expand the braces of all sources.

    Raises:
        ConfigError: an address of an unknown kind, or a command where none is allowed.
        DataError: local shards that are not there.
    """
    from webdataset.shardlists import expand_urls

    total = sum(source.weight or source.samples for source in config.sources)
    sources = []
    for number, given in enumerate(config.sources):
        shards = tuple(str(Path(shard).expanduser()) if _is_path(shard) else shard for shard in expand_urls(given.shards))
        where = f"data.streaming.sources[{number}]"
        for shard in shards:
            _check_kind(shard, where, allow_pipe=config.allow_pipe)
        missing = [shard for shard in shards if _is_path(shard) and not Path(shard).is_file()]
        if missing:
            raise DataError(f"{where}: {len(missing)} of {len(shards)} shards are not there ({missing[0]} first); correct the path")
        sources.append(Source(shards, given.samples / len(shards), (given.weight or given.samples) / total))
    return sources


def shard_name(shard: str) -> str:
    """A shard as messages name it: without what may be secret in addresses."""
    return shard if _is_path(shard) else scrub(shard)


def shard_sequence(num_shards: int, seed: str, first: int, stride: int) -> Iterator[int]:
    """Shard numbers at places `first`, `first + stride` … of the endless sequence of a source."""
    order: list[int] = []
    shown = -1
    place = first
    while True:
        number, offset = divmod(place, num_shards)
        if number != shown:
            order, shown = list(range(num_shards)), number
            random.Random(f"{seed} {number}").shuffle(order)
        yield order[offset]
        place += stride


class SampleStream:
    """The samples of stream g of G, from a step on.

    Args:
        samples_before: how many samples of all sources the run has had at that step.
        shuffle_buffer: samples from which the next one is drawn.
        on_bad_shard: called with name and reason of a shard that cannot be read to its end.
        note: told what is being read.

    Raises:
        StorageError: while iterating, a server cannot be reached or refuses.
        DataError: while iterating, no shard of a source has a sample.
    """

    def __init__(
        self,
        sources: list[Source],
        *,
        seed: int,
        stream: int,
        num_streams: int,
        samples_before: int,
        shuffle_buffer: int,
        on_bad_shard: Callable[[str, str], None],
        note: Callable[[str], None],
    ) -> None:
        import webdataset

        self.rng = random.Random(f"{seed} {stream} {samples_before}")
        self._on_bad_shard = on_bad_shard
        self._note = note
        self._weights = [source.share for source in sources]
        shuffle = webdataset.shuffle(shuffle_buffer, initial=shuffle_buffer, rng=self.rng)
        self._samples: list[Iterator[RawSample]] = []
        for number, source in enumerate(sources):
            places = shard_sequence(len(source.shards), f"{seed} {number}", source.first_place(samples_before) + stream, num_streams)
            samples = self._read(source, places)
            self._samples.append(iter(shuffle(samples)) if shuffle_buffer > 1 else samples)

    def __iter__(self) -> Iterator[RawSample]:
        while True:
            (samples,) = self.rng.choices(self._samples, self._weights)
            yield next(samples)

    def _read(self, source: Source, places: Iterator[int]) -> Iterator[RawSample]:
        from webdataset.tariterators import group_by_keys, tar_file_expander

        fruitless = 0
        for place in places:
            name = shard_name(source.shards[place])

            def skip_rest(error: Exception, name: str = name) -> bool:
                self._on_bad_shard(name, _reason(error))
                return True

            fruitless += 1
            files = tar_file_expander(self._opened(source.shards[place], name), handler=skip_rest)
            for sample in group_by_keys(files, handler=skip_rest):
                fruitless = 0
                key, shard = sample.pop("__key__"), sample.pop("__url__")
                self._note(f"reading shard {shard}")
                yield RawSample(key, shard, sample)
            if fruitless > len(source.shards):
                raise DataError(f"none of {len(source.shards)} shards, {name} among them, holds a sample that can be read")

    def _opened(self, shard: str, name: str) -> Iterator[dict[str, Any]]:
        from webdataset.gopen import gopen

        self._note(f"opening shard {name}")
        try:
            if shard.startswith(_PIPE):
                stream = gopen(shard, "rb")
                yield {"url": name, "stream": stream}
                # Only now a command must tell that what it sent was not all.
                stream.close()
                return
            # A remote shard is fetched whole first: a transfer that breaks is then repeated, not a lost shard.
            with Storage().local_copy(shard) as path, open(path, "rb") as stream:
                yield {"url": name, "stream": stream}
        except (OSError, NotThereError) as error:
            self._on_bad_shard(name, _reason(error))


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error.args[0] if error.args else type(error).__name__)
    # webdataset quotes the whole command and its options.
    status = re.search(r"exit -?\d+(?= \()", text)
    return f"the command ended with {status[0]}" if status else scrub(text)


def _check_kind(shard: str, where: str, *, allow_pipe: bool) -> None:
    if shard.startswith(_PIPE):
        if not allow_pipe:
            raise ConfigError(f"{where}: {scrub(shard)} would run a shell command; set data.streaming.allow_pipe: true if you trust it")
    elif is_url(shard) and scheme_of(shard) not in SCHEMES:
        raise ConfigError(f"{where}: {scheme_of(shard)}:// is not supported; use a path, s3://, gs://, https:// or pipe:")


def _is_path(shard: str) -> bool:
    return not shard.startswith(_PIPE) and not is_url(shard)
