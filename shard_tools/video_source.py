"""From an annotated path to a file that a decoder can open: below the videos folder, or fetched from a URL."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from dgl_scale.errors import DataError
from dgl_scale.files import path_inside
from dgl_scale.storage.clients import NotThereError, StorageError, TooLargeError
from dgl_scale.storage.storage import Storage
from dgl_scale.storage.urls import SCHEMES, Location, is_url, public_url, scheme_of, url_inside
from shard_tools.failures import SampleFailure, Status


@contextlib.contextmanager
def local_video(videos: str, name: str, storage: Storage, max_bytes: int) -> Iterator[Path]:
    """A path under which an annotated video can be decoded while the block runs.

    Args:
        videos: the videos folder, local or a URL.
        name: as annotated: a path that stays inside `videos`, or a whole http, https, s3 or gs URL.
        storage: fetches what is remote.
        max_bytes: a larger remote video is refused.

    Raises:
        SampleFailure: bad_path, missing, too_large or unreachable.
    """
    location = locate_video(videos, name)
    if not is_url(location):
        yield Path(location)
        return
    with contextlib.ExitStack() as stack:
        try:
            path = stack.enter_context(storage.local_copy(location, max_bytes))
        except NotThereError as error:
            place = f"{public_url(location)}: no such file" if is_url(name) else "no such file in the videos folder"
            raise SampleFailure(Status.MISSING, place) from error
        except TooLargeError as error:
            message = f"{public_url(location)}: more than storage.max_video_gib ({max_bytes / 2**30:g} GiB)"
            raise SampleFailure(Status.TOO_LARGE, message) from error
        except StorageError as error:
            raise SampleFailure(Status.UNREACHABLE, str(error)) from error
        yield path


def locate_video(videos: str, name: str) -> Location:
    """Where an annotated video is.

    Raises:
        SampleFailure: bad_path, for a path that leads out of `videos` or a URL of another kind.
    """
    if is_url(name):
        if scheme_of(name) not in SCHEMES:
            raise SampleFailure(Status.BAD_PATH, f"{scheme_of(name)}:// is not read; use one of {', '.join(sorted(SCHEMES))}, or a path")
        return name
    try:
        return url_inside(videos, name) if is_url(videos) else str(path_inside(Path(videos), name))
    except DataError as error:
        raise SampleFailure(Status.BAD_PATH, f"path {name!r} leads out of the videos folder") from error
    except (OSError, ValueError, RuntimeError) as error:
        raise SampleFailure(Status.BAD_PATH, f"path {name!r} cannot be a file: {type(error).__name__}") from error
