"""How far a generation is."""

from typing import Any, Self

from tqdm import tqdm

from perceivers.generate.files import shift_seconds


class Progress:
    """A bar over tokens, or seconds of music, of the row that is furthest behind."""

    def __init__(self, rows: int, most: int, seconds: float | None) -> None:
        style: dict[str, Any] = {"total": most, "unit": " tokens"} if seconds is None else {"total": seconds}
        if seconds is not None:
            style["bar_format"] = "{desc}: {n:.1f} of {total:.0f} s |{bar}| {elapsed} < {remaining}{postfix}"
        self.bar = tqdm(desc="generating", **style)
        self.seconds, self.tokens = seconds, 0
        self.time_s = [0.0] * rows
        """Music of each row."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def update(self, tokens: list[int | None]) -> None:
        """Note one more token of each row that goes on."""
        going = [row for row, token in enumerate(tokens) if token is not None]
        self.tokens += len(going)
        if self.seconds is None:
            self.bar.update(1)
            return
        for row in going:
            self.time_s[row] += shift_seconds(tokens[row] or 0)
        if elapsed := self.bar.format_dict["elapsed"]:
            self.bar.set_postfix_str(f"{self.tokens / elapsed:.0f} tokens/s", refresh=False)
        self.bar.update(min(self.seconds, *(self.time_s[row] for row in going)) - self.bar.n)
