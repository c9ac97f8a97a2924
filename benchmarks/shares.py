"""What a round costs where the silos add the noise: drawing a silo's noise share, and encoding a client's update.

`python -m benchmarks.shares` times both on this machine's cores for a head, for adapters and for all weights of a small BERT.
To encode is to rotate, to round to integers, and to put them into the ring of the secure sum.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np

from tff_pipeline.privacy.discrete_gaussian import discrete_gaussian
from tff_pipeline.privacy.distributed import finest_discretization

# Weights of all-MiniLM-L6-v2: a head for 49 labels; with adapters of rank 8 on query and value; everything.
_SIZES = {"head": 18_865, "adapters": 92_593, "everything": 22_732_081}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=3, help="how often each is timed; the median is printed")
    repeat = parser.parse_args(argv).repeat

    import tensorflow as tf

    from tff_pipeline.aggregators.distributed_discrete_gaussian import decode, encode

    print("| trained | coordinates, padded | drawing a noise share, s | encoding an update, s | decoding the sum, s |")
    print("| --- | --- | --- | --- | --- |")
    for name, dimension in _SIZES.items():
        made = finest_discretization(
            clip_norm=1.0,
            noise_multiplier=1.2,
            dimension=dimension,
            clients=9900,
            expected_cohort=990.0,
            silos=6,
            tolerated=1,
            bits=32,
        )
        assert made is not None
        update, seed = tf.constant(np.random.default_rng(0).normal(size=dimension)), tf.constant([1, 2], tf.int64)
        client = tf.function(lambda value, seed=seed, made=made: encode([value], seed, made))
        server = tf.function(lambda total, seed=seed, made=made: decode(total, seed, made))
        total = client(update)
        server(total)  # traced, like the client's
        seconds = [
            _median(repeat, lambda made=made: discrete_gaussian(b"k" * 32, made.log2_scale, made.length)),
            _median(repeat, lambda client=client, update=update: client(update)),
            _median(repeat, lambda server=server, total=total: server(total)),
        ]
        print(f"| {name} | {made.length:,} | " + " | ".join(f"{value:.2g}" for value in seconds) + " |")
    return 0


def _median(repeat: int, work: Callable[[], object]) -> float:
    """The median of the seconds that `work` takes."""
    seconds = []
    for _ in range(repeat):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


if __name__ == "__main__":
    raise SystemExit(main())
