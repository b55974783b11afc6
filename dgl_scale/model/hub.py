"""Prompts files on a model hub (Hugging Face's, or one that speaks its protocol). The only door to `huggingface_hub` of our own."""

import importlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import dgl_scale
from dgl_scale.errors import ConfigError, DglError
from dgl_scale.files import atomic_file
from dgl_scale.model.model_card import model_card
from dgl_scale.model.weights import read_prompts, read_prompts_metadata

FILE = "prompts.safetensors"
CARD = "README.md"


def push_prompts(
    path: str | Path, repository: str, *, private: bool = False, base_model: str | None = None, model_license: str | None = None
) -> str:
    """Upload a prompts file, and a model card if the repository has none; makes the repository where it is missing.

    Args:
        repository: OWNER/NAME. The server is that of `HF_ENDPOINT`, the right to write that of `HF_TOKEN` or `hf auth login`.
        private: of a repository that is made.
        base_model: as in `model_card`.
        model_license: as in `model_card`.

    Returns:
        the address of the commit.

    Raises:
        CheckpointError: no prompts file.
        DglError: the hub refuses, or cannot be reached.
    """
    metadata, _ = read_prompts(path)
    hub = _hub()
    api = hub.HfApi(endpoint=_endpoint(), library_name="dgl_scale", library_version=dgl_scale.__version__)
    with _one_line(repository):
        api.create_repo(repository, private=private, exist_ok=True)
        files = [hub.CommitOperationAdd(FILE, str(path))]
        if not api.file_exists(repository, CARD):
            card = model_card(metadata, base_model=base_model, model_license=model_license)
            files.append(hub.CommitOperationAdd(CARD, card.encode()))
        step = metadata["extra"].get("step")
        message = "Prompts" if step is None else f"Prompts of step {step}"
        return str(api.create_commit(repository, files, commit_message=message).commit_url)


def pull_prompts(repository: str, output: str | Path, *, revision: str | None = None) -> None:
    """Download a prompts file and write it to `output`, once it is known to be one.

    Args:
        repository: OWNER/NAME, as in `push_prompts`.
        output: the file to write.
        revision: a branch, tag or commit; null: the main branch.

    Raises:
        CheckpointError: what is there is no prompts file.
        DglError: the hub refuses, has none, or cannot be reached; `output` cannot be written.
    """
    hub = _hub()
    with tempfile.TemporaryDirectory(prefix="dgl-scale-hub-") as folder:
        with _one_line(repository):
            fetched = hub.hf_hub_download(repository, FILE, revision=revision, local_dir=folder, endpoint=_endpoint())
        read_prompts_metadata(fetched)
        with open(fetched, "rb") as source, atomic_file(Path(output)) as target:
            shutil.copyfileobj(source, target)


def _hub() -> ModuleType:
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise ConfigError("this needs huggingface_hub; pip install 'dgl-scale[hub]'") from error


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT")


@contextmanager
def _one_line(repository: str) -> Iterator[None]:
    """What `huggingface_hub` raises as an error of ours that says what to do."""
    from huggingface_hub import errors

    try:
        yield
    except DglError:
        raise
    except errors.HFValidationError as error:
        raise ConfigError(f"{repository!r} names no repository; give OWNER/NAME") from error
    except errors.RevisionNotFoundError as error:
        raise DglError(f"{repository} has no such revision") from error
    except errors.RemoteEntryNotFoundError as error:
        raise DglError(f"{repository} has no {FILE}") from error
    except errors.RepositoryNotFoundError as error:
        raise DglError(f"{repository}: no such repository, or no right to it; set HF_TOKEN, or log in with `hf auth login`") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        advice = "; set HF_TOKEN, or log in with `hf auth login`" if status in {401, 403} else ""
        raise DglError(f"{repository}: the hub answers {status}{advice}") from error
    except (OSError, errors.HTTPError) as error:  # type: ignore[attr-defined] # the base of its HTTP library's errors
        raise DglError(f"{repository}: the hub cannot be reached ({type(error).__name__})") from error
