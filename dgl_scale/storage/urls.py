"""URLs and paths as text: what is remote, joining, and what may be shown of an address."""

import posixpath
import re
from pathlib import Path
from urllib.parse import quote, urlsplit

from dgl_scale.errors import DataError

Location = str | Path
"""A local path, or the URL of something remote."""

SCHEMES = frozenset(["gs", "http", "https", "s3"])
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_URL_IN_TEXT = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>]+")
_MAX_TEXT_CHARS = 200


def is_url(location: Location) -> bool:
    """Whether this is a URL (of any scheme), not a local path."""
    return isinstance(location, str) and _SCHEME.match(location) is not None


def scheme_of(location: Location) -> str:
    """The scheme of a URL, in lower case; empty for a local path."""
    found = _SCHEME.match(str(location)) if isinstance(location, str) else None
    return found[1].lower() if found else ""


def public_url(location: Location) -> str:
    """The location without what may be secret: user, password, query and fragment. Local paths stay as they are."""
    if not is_url(location):
        return str(location)
    scheme, _, rest = str(location).partition("://")
    host, slash, path = re.split(r"[?#]", rest, maxsplit=1)[0].partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def scrub(text: str) -> str:
    """`text` as one short line, the URLs in it as `public_url` shows them."""
    line = " ".join(_URL_IN_TEXT.sub(lambda found: public_url(found[0]), text).split())
    return line if len(line) <= _MAX_TEXT_CHARS else f"{line[: _MAX_TEXT_CHARS - 1]}…"


def join(folder: Location, *names: str) -> Location:
    """The location of a file below a folder. Names are our own or checked; see `url_inside` for others'."""
    if is_url(folder):
        return "/".join([str(folder).rstrip("/"), *names])
    return Path(folder, *names)


def url_inside(folder: str, name: str) -> str:
    """The URL of an annotated, relative `name` below the URL of a folder.

    Raises:
        DataError: it leads out of the folder.
        ValueError: it holds control characters.
    """
    normal = posixpath.normpath(name)
    if name.startswith("/") or "\\" in name or normal == ".." or normal.startswith("../"):
        raise DataError(f"path {name!r} leads out of {public_url(folder)}")
    if any(ord(character) < ord(" ") for character in name):
        raise ValueError("control characters")
    if scheme_of(folder) not in {"http", "https"}:
        return f"{folder.rstrip('/')}/{normal}"
    # A query at the end of the folder (a signature for all files below it) goes to the end of the whole.
    parts = urlsplit(folder)
    return parts._replace(path=f"{parts.path.rstrip('/')}/{quote(normal)}").geturl()
