"""Work that threads do ahead of the caller, with results in the order of the items."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice, repeat
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_ahead(
    work: Callable[[Item], Result], items: Iterable[Item], num_threads: int
) -> Iterator[Result]:
    """Yield `work(item)` for each item, in the order of the items.

    While the caller uses one result, the threads work on the next `num_threads` items. If the
    caller stops early, the items in work are finished first, and no further item is started.

    Args:
        work: The function that runs in the threads. An exception in it is raised to the caller at
            the place of its item.
        items: The items. They are read in the caller's thread, `num_threads` ahead.
        num_threads: The number of threads, and of results in memory beside the caller's.
    """
    iterator = iter(items)
    first_items = list(islice(iterator, 2))
    if len(first_items) < 2:  # to start a thread for one item would only take time
        yield from map(work, first_items)
        return
    pending: deque[Future[Result]] = deque()
    threads = ThreadPoolExecutor(num_threads)
    try:
        for item in chain(first_items, iterator):
            pending.append(threads.submit(work, item))
            if len(pending) > num_threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        threads.shutdown(cancel_futures=True)


def read_ahead(items: Iterator[Item]) -> Iterator[Item]:
    """Yield the items of an iterator; a thread reads the next item while the caller uses this one.

    Args:
        items: The iterator, none of whose items is None. Only one thread reads from it.
    """
    for item in map_ahead(lambda _: next(items, None), repeat(None), num_threads=1):
        if item is None:
            return
        yield item
