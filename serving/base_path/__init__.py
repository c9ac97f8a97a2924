"""A base path: where a model server looks for the versions of a model. It is a folder, or an address in an object store."""

from pathlib import Path

from serving.base_path.folder import Folder
from serving.base_path.object_store import ObjectStore

BasePath = Folder | ObjectStore


def parse(text: str) -> BasePath:
    """A base path as models.config and command lines write it: an address has a scheme, such as gs://."""
    return ObjectStore(text.rstrip("/")) if is_address(text) else Folder(Path(text))


def is_address(text: str) -> bool:
    """Whether a base path is an address in an object store."""
    return "://" in text
