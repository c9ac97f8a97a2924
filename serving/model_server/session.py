"""A version loaded from disk as the server loads it: a session that is fed and fetched by the names of tensors."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

DEFAULT_SIGNATURE = "serving_default"


class ModelSession:
    """One version in a graph and a session of its own, until `close`. Threads may share it."""

    def __init__(self, version: Path):
        """Loads the version; raises what TensorFlow raises where it cannot."""
        import tensorflow as tf
        import tensorflow_text  # noqa: F401  registers its ops, which the stock server links

        options = tf.compat.v1.ConfigProto(gpu_options=tf.compat.v1.GPUOptions(allow_growth=True))
        self._session = tf.compat.v1.Session(graph=tf.Graph(), config=options)
        try:
            with _without_deprecations():
                meta_graph = tf.compat.v1.saved_model.loader.load(self._session, ["serve"], str(version))
        except BaseException:
            self._session.close()
            raise
        self.signatures: Mapping[str, Any] = meta_graph.signature_def

    def run(
        self, fetches: Mapping[str, str], feeds: Mapping[str, np.ndarray], timeout_s: float | None = None
    ) -> dict[str, np.ndarray]:
        """The tensors that `fetches` names, under its keys; `feeds` are by the names of tensors, too.

        Raises what TensorFlow raises, such as a DeadlineExceededError after `timeout_s`.
        """
        import tensorflow as tf

        # A deadline that has passed must not become 0, which means that there is none.
        limit = max(round(timeout_s * 1000), 1) if timeout_s is not None else None
        options = tf.compat.v1.RunOptions(timeout_in_ms=limit) if limit is not None else None
        return {name: np.asarray(value) for name, value in self._session.run(dict(fetches), feeds, options).items()}

    def close(self) -> None:
        self._session.close()


@contextmanager
def _without_deprecations() -> Iterator[None]:
    """TensorFlow warns at every load that its loader for sessions is deprecated; it is the one that the server uses."""
    import tensorflow as tf

    logger = tf.get_logger()
    before = logger.level
    logger.setLevel("ERROR")
    try:
        yield
    finally:
        logger.setLevel(before)
