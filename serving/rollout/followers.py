"""Which models.config files were ever used with a base path: so `--keep` removes no version that one of them names."""

import json
import os
from pathlib import Path

from serving import lock
from serving.rollout import config_file
from tff_pipeline.artifacts import read_json
from tff_pipeline.errors import ConfigError

_FOLLOWERS = "models-configs.json"  # in the base path's folder of the lock


def register(base_path: Path, file: Path, base_lock: lock.Lock) -> None:
    """Remembers that this models.config names versions of this base path."""
    path, target = base_path / lock.FOLDER / _FOLLOWERS, os.path.realpath(file)
    known = read_json(path) if path.exists() else []
    if target not in known:
        base_lock.write(path, json.dumps([*known, target], indent=2).encode(), prefix=lock.PREPARED)


def needed(base_path: Path) -> set[int]:
    """The versions that any models.config which was used with this base path names.

    Raises:
      ConfigError: if one of these files cannot be read; then nothing may be removed.
    """
    path, versions = base_path / lock.FOLDER / _FOLLOWERS, set()
    for name in read_json(path) if path.exists() else []:
        try:
            message, _ = config_file.read(Path(name))
        except ConfigError as error:
            raise ConfigError(
                f"{path}: names {name}, which followed this base path, and says which versions are needed: {error} No "
                "version was removed. If the file is gone for good, remove its line."
            ) from None
        for config in message.model_config_list.config:
            if Path(config.base_path).resolve() == base_path.resolve():
                versions |= {*config.model_version_policy.specific.versions, *config.version_labels.values()}
    return versions
