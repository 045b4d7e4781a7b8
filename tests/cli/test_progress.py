from collections.abc import Sequence

import pytest

from perceivers.cli.progress import Progress

KEY, TENTH, FIFTH = 60, 256 + 9, 256 + 19


def frozen(progress: Progress, elapsed: float) -> Progress:
    """As if it had begun so many seconds ago."""
    bar = progress.bar
    bar._time = lambda: bar.start_t + elapsed  # pyright: ignore[reportAttributeAccessIssue]
    return progress


def shown(progress: Progress, steps: Sequence[Sequence[int | None]]) -> list[float]:
    """Where the bar is after each step."""
    places = []
    for tokens in steps:
        progress.update(list(tokens))
        places.append(progress.bar.n)
    return places


def test_music_is_that_of_the_row_furthest_behind() -> None:
    with Progress(3, 100, 0.5) as progress:
        places = shown(progress, [[TENTH, FIFTH, TENTH], [KEY, FIFTH, TENTH], [TENTH, FIFTH, FIFTH]])
    assert places == pytest.approx([0.1, 0.1, 0.2])
    assert progress.steps == [20, 60, 40]
    assert progress.tokens == 9


def test_rows_that_have_ended_hold_nothing_back() -> None:
    with Progress(3, 100, 0.5) as progress:
        steps = [[TENTH, FIFTH, TENTH], [None, FIFTH, TENTH], [None, FIFTH, None], [None, None, None]]
        places = shown(progress, steps)
    assert places == pytest.approx([0.1, 0.2, 0.5, 0.5])  # and no further than what was asked for
    assert progress.steps == [10, 60, 20]
    assert progress.tokens == 6


@pytest.mark.parametrize("seconds", [None, 0.5])
def test_the_speed_is_that_of_all_rows(seconds: float | None) -> None:
    with frozen(Progress(3, 100, seconds), 2.0) as progress:
        for _ in range(4):
            progress.update([KEY, KEY, KEY])
        progress.update([None, KEY, None])
        assert "6 tokens/s" in str(progress.bar)  # 13 in 2 s


def test_nothing_is_divided_by_no_time() -> None:
    with frozen(Progress(1, 100, 0.5), 0.0) as progress:
        progress.update([KEY])
        assert "tokens/s" not in str(progress.bar)


def test_without_seconds_it_counts_tokens_of_a_row() -> None:
    with frozen(Progress(2, 7, None), 1.0) as progress:
        assert shown(progress, [[KEY, KEY], [KEY, None], [KEY, None]]) == [1, 2, 3]
        assert str(progress.bar).startswith("generating: 3 of 7 tokens |")
        assert progress.steps == [0, 0]


def test_with_seconds_it_counts_them() -> None:
    with frozen(Progress(1, 100, 1.5), 1.0) as progress:
        for _ in range(4):
            progress.update([FIFTH])
        assert str(progress.bar).startswith("generating: 0.8 of 1.5 s |")


def test_it_closes() -> None:
    with Progress(1, 7, None) as progress:
        pass
    assert progress.bar.disable
