"""Pickles that hold nothing but dicts, lists, tuples, texts and numbers, read without running anything of theirs.

A pickle runs code by naming a function or class (a *global*). This reader knows none: every global is
refused before it is looked up, so nothing is imported or called.
"""

import io
import pickle
from typing import Any

from dgl_scale.errors import DataError
from shard_tools.annotations.annotation_files import AnnotationFile, read_bytes


class _Forbidden(Exception):
    """The pickle names a global."""


# The one in Python: the one in C sets aside as much memory as a few forged bytes ask for.
class _PlainUnpickler(pickle._Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        raise _Forbidden(f"{module_name}.{global_name}")

    def persistent_load(self, pid: Any) -> Any:
        raise _Forbidden("a persistent object")


def read_plain_pickle(file: AnnotationFile) -> Any:
    """The value of a pickle of plain values.

    Texts of Python 2 pickles (bytes there) are read as UTF-8, else as Windows-1252.

    Raises:
        DataError: missing, empty, damaged, or it holds anything else than plain values; nothing of it was run.
    """
    content = read_bytes(file)
    for encoding in ("utf-8", "cp1252"):
        try:
            return _PlainUnpickler(io.BytesIO(content), encoding=encoding).load()
        except _Forbidden as error:
            raise DataError(
                f"{file} names {error}; only plain dicts, lists and texts are read from a pickle, nothing of it was run"
            ) from error
        except UnicodeDecodeError:
            continue
        # Damaged bytes make the unpickler raise almost anything: EOFError, KeyError, ValueError, MemoryError and more.
        except Exception as error:
            raise DataError(f"{file} is no pickle, or is cut off ({type(error).__name__}: {error}); get it again") from error
    raise DataError(f"{file} holds texts in neither UTF-8 nor Windows-1252; get it again")
