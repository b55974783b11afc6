"""The video files of a dataset, found by name, whatever their suffix and sub-folder."""

import os
from collections import Counter
from collections.abc import Iterable

from dgl_scale.errors import DataError


class VideoFiles:
    """An index of the files below a folder by their names without suffix.

    Args:
        paths: of the video files, relative to the folder.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        self._paths: dict[str, list[str]] = {}
        suffixes: Counter[str] = Counter()
        folders = set()
        for path in sorted(paths):
            stem, suffix = os.path.splitext(os.path.basename(path))
            self._paths.setdefault(stem, []).append(path)
            suffixes[suffix] += 1
            folders.add(os.path.dirname(path))
        self._suffix = min(suffixes, key=lambda suffix: (-suffixes[suffix], suffix), default=".mp4")
        self._folder = folders.pop() if len(folders) == 1 else ""

    def __len__(self) -> int:
        return sum(map(len, self._paths.values()))

    def __contains__(self, path: str) -> bool:
        return path in self._paths.get(os.path.splitext(os.path.basename(path))[0], ())

    def example(self) -> str:
        """One of the paths, for messages.

        Raises:
            StopIteration: there are none.
        """
        return next(iter(self._paths.values()))[0]

    def get(self, name: str) -> str | None:
        """The path of the file called `name` and a suffix; None if there is none.

        Raises:
            DataError: there are two.
        """
        paths = self._paths.get(name, [])
        if len(paths) > 1:
            raise DataError(f"two files are called {name!r}: {paths[0]} and {paths[1]}; keep one of them in the videos folder")
        return paths[0] if paths else None

    def find(self, *names: str) -> str:
        """The path of the first of `names` that has a file; else where the first would lie, beside the other files.

        Raises:
            DataError: as `get`.
        """
        for name in names:
            path = self.get(name)
            if path is not None:
                return path
        return os.path.join(self._folder, names[0] + self._suffix)
