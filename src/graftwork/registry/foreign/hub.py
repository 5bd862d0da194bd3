"""Where the files of an import are: a folder, a repository of the hub (through its local cache), or an index entry.

Nothing is fetched but the few small files that readers open. Without a network the error says which repository is
meant and where its files may be put by hand.
"""

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from graftwork.errors import NotFound
from graftwork.registry.foreign.index import is_identifier, resolve

# what readers open; a repository may hold far more
_WANTED = ("*.json", "*.bin", "*.safetensors", "*.pt", "tokenizer/*")
_UNWANTED = ("pytorch_model.bin", "model*.safetensors", "optimizer*", "training_args.bin")


def locate(
    source: str, *, base: str | None = None, config: str | None = None, revision: str | None = None
) -> tuple[Path, str]:
    """The folder that holds an import's files, and what it was asked for as: a folder, an id of AdapterHub's index
    (with the base and configuration meant), or a repository. Raises NotFound.
    """
    if Path(source).is_dir():
        return Path(source), str(source)
    if is_identifier(source):
        repository = resolve(source, base, config).repository
    elif source.count("/") == 1 and not source.startswith((".", "/", "~")):
        repository = source
    else:
        raise NotFound(
            f"{source!r} is no folder, no repository (owner/name) and no id of AdapterHub's index (task/subtask@org)"
        )
    return _fetched(repository, revision), repository


def _fetched(repository: str, revision: str | None) -> Path:
    try:
        folder = snapshot_download(
            repository, revision=revision, allow_patterns=list(_WANTED), ignore_patterns=list(_UNWANTED)
        )
    except HFValidationError as error:
        raise NotFound(f"{repository!r} is not the name of a repository: {error}") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise NotFound(
            f"{repository}: cannot be fetched, and the local cache of huggingface_hub does not hold it "
            f"({type(error).__name__}). Get the files of the repository {repository} on a machine with a network, put "
            f"them into a folder, such as ./{repository.partition('/')[2]}, and import that folder"
        ) from error
    return Path(folder)
