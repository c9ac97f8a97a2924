"""Counters and distributions under the server's names, as Prometheus reads them."""

import threading
from bisect import bisect_left
from collections.abc import Sequence

_BOUNDS = tuple(10 * 1.8**power for power in range(33))  # the server's: microseconds, to about twenty minutes
_COUNTERS = {
    ":tensorflow:serving:request_count": ("model_name", "status"),
    ":tensorflow:cc:saved_model:load_attempt_count": ("model_path", "status"),
}
_DISTRIBUTIONS = {
    ":tensorflow:serving:request_latency": ("model_name", "API", "entrypoint"),
    ":tensorflow:serving:runtime_latency": ("model_name", "API", "runtime"),
    ":tensorflow:serving:model_warmup_latency": ("model_path", "status"),
    ":tensorflow:serving:batching_session:queuing_latency": ("thread_pool_name",),
}


class Metrics:
    """Counters and distributions. Thread-safe; labels are given in the order of the tables above."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, tuple[str, ...]], int] = {}
        self._buckets: dict[tuple[str, tuple[str, ...]], tuple[list[int], list[float]]] = {}

    def count(self, name: str, *labels: str) -> None:
        with self._lock:
            self._counts[name, labels] = self._counts.get((name, labels), 0) + 1

    def observe(self, name: str, seconds: float, *labels: str) -> None:
        microseconds = seconds * 1e6
        with self._lock:
            buckets, total = self._buckets.setdefault((name, labels), ([0] * (len(_BOUNDS) + 1), [0.0]))
            buckets[bisect_left(_BOUNDS, microseconds)] += 1
            total[0] += microseconds

    def page(self) -> str:
        """Everything, in Prometheus's text format."""
        lines = []
        with self._lock:
            for name, keys in _COUNTERS.items():
                lines.append(f"# TYPE {name} counter")
                for (metric, labels), value in sorted(self._counts.items()):
                    if metric == name:
                        lines.append(f"{name}{{{_labels(keys, labels)}}} {value}")
            for name, keys in _DISTRIBUTIONS.items():
                lines.append(f"# TYPE {name} histogram")
                for (metric, labels), (buckets, total) in sorted(self._buckets.items()):
                    if metric == name:
                        lines += _histogram(name, _labels(keys, labels), buckets, total[0])
        return "\n".join(lines) + "\n"


def _histogram(name: str, labels: str, buckets: Sequence[int], total: float) -> list[str]:
    lines, cumulative = [], 0
    for bound, count in zip((*(f"{bound:g}" for bound in _BOUNDS), "+Inf"), buckets, strict=True):
        cumulative += count
        lines.append(f'{name}_bucket{{{labels},le="{bound}"}} {cumulative}')
    return [*lines, f"{name}_sum{{{labels}}} {total:.0f}", f"{name}_count{{{labels}}} {cumulative}"]


def _labels(keys: Sequence[str], values: Sequence[str]) -> str:
    escaped = (value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") for value in values)
    return ",".join(f'{key}="{value}"' for key, value in zip(keys, escaped, strict=True))
