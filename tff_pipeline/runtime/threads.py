"""Work on threads whose results are taken in order, as many at a time as memory has room for."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def bounded_map(
    threads: ThreadPoolExecutor, function: Callable[[T], R], items: Iterable[T], *, ahead: int
) -> Iterator[R]:
    """`map` on threads that never has more than `ahead` results waiting; the first error cancels the rest."""
    pending: list[Future[R]] = []
    try:
        for item in items:
            pending.append(threads.submit(function, item))
            if len(pending) >= ahead:
                yield pending.pop(0).result()
        while pending:
            yield pending.pop(0).result()
    finally:
        for future in pending:
            future.cancel()
