"""Results and errors come in the order of the items, and an early stop ends the threads."""

import threading
from collections.abc import Iterator

import pytest

from common.lookahead import map_ahead, read_ahead

TIMEOUT_S = 30


@pytest.mark.parametrize("num_threads", [1, 3])
def test_results_are_in_the_order_of_the_items(num_threads: int) -> None:
    assert list(map_ahead(lambda n: n * n, range(20), num_threads)) == [n * n for n in range(20)]


def test_the_next_items_are_in_work_while_the_caller_uses_one() -> None:
    started = [threading.Event() for _ in range(4)]

    def work(item: int) -> int:
        started[item].set()
        return item

    results = map_ahead(work, range(4), 2)
    assert next(results) == 0
    assert started[1].wait(TIMEOUT_S)
    assert started[2].wait(TIMEOUT_S)
    assert not started[3].is_set()
    assert list(results) == [1, 2, 3]


def test_an_error_is_raised_at_the_place_of_its_item() -> None:
    results = map_ahead(lambda n: 6 // n, [3, 2, 0, 1], 2)
    assert [next(results), next(results)] == [2, 3]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_after_an_early_stop_no_further_item_is_started() -> None:
    started: list[int] = []
    results = map_ahead(lambda n: started.append(n), range(100), 2)
    next(results)
    assert isinstance(results, Iterator)
    results.close()  # type: ignore[attr-defined]
    num_started = len(started)
    assert num_started <= 3
    assert len(started) == num_started


def test_an_iterator_is_read_one_item_ahead_and_to_its_end() -> None:
    was_read = [threading.Event() for _ in range(3)]

    def items() -> Iterator[int]:
        for number in range(3):
            was_read[number].set()
            yield number

    reader = read_ahead(items())
    assert next(reader) == 0
    assert was_read[1].wait(TIMEOUT_S)
    assert not was_read[2].is_set()
    assert list(reader) == [1, 2]
    assert list(read_ahead(iter(()))) == []


def test_an_error_of_the_iterator_comes_after_the_items_before_it() -> None:
    def items() -> Iterator[str]:
        yield "first"
        raise OSError("broken")

    reader = read_ahead(items())
    assert next(reader) == "first"
    with pytest.raises(OSError, match="broken"):
        next(reader)
