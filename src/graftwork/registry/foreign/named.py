"""The base that files of another tool name, for who does not say which one is meant."""

from pathlib import Path

from graftwork.errors import NotFound
from graftwork.registry.foreign.files import listing, read_json

# file -> the key under which it names its base
_NAMES = {
    "adapter_config.json": ("model_name", "base_model_name_or_path"),
    "adapter_fusion_config.json": ("model_name",),
    "head_config.json": ("model_name",),
}


def base_name(folder: Path) -> str:
    """The base that the files of a folder, or of the folders in a whole setup, name. Raises NotFound, PackageError."""
    for place in (folder, *sorted(path for path in folder.glob("*") if path.is_dir())):
        for file, keys in _NAMES.items():
            if not (place / file).exists():
                continue
            config = read_json(place, file)
            named = next((config[key] for key in keys if isinstance(config.get(key), str) and config[key]), None)
            if named is not None:
                return str(named)
    raise NotFound(f"{folder}: names no base; say which one is meant. It holds {listing(folder)}")
