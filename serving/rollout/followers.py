"""Which models.config files were ever used with a base path: so `--keep` removes no version that one of them names."""

import json
import os
from pathlib import Path

from serving import lock
from serving.rollout import config_file
from tff_pipeline.artifacts import read_json
from tff_pipeline.errors import ArtifactError, ConfigError

_FOLLOWERS = "models-configs.json"  # in the base path's folder of the lock


def register(base_path: Path, file: Path, base_lock: lock.Lock) -> None:
    """Remembers that this models.config names versions of this base path."""
    path, target = base_path / lock.FOLDER / _FOLLOWERS, os.path.realpath(file)
    known = _known(path)
    if target not in known:
        base_lock.write(path, json.dumps([*known, target], indent=2).encode(), prefix=lock.PREPARED)


def needed(base_path: Path) -> set[int]:
    """The versions that any models.config which was used with this base path names.

    Raises:
      ConfigError, ArtifactError: if one of these files or their list cannot be read; then nothing may be removed.
    """
    path, versions = base_path / lock.FOLDER / _FOLLOWERS, set()
    for name in _known(path):
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


def _known(path: Path) -> list[str]:
    """The files that were registered; raises ArtifactError if their list cannot be read."""
    names = read_json(path) if path.exists() else []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ArtifactError(
            f"{path}: holds something else than a list of files; expected the paths of the models.config files that follow this "
            "base path, as a JSON list. Correct it by hand: the versions that they name are kept. Nothing was changed."
        )
    return names
