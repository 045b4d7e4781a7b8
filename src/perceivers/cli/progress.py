"""How far a generation is."""

from tqdm import tqdm

from perceivers.data.music import STEPS_PER_SECOND
from perceivers.generate.files import shift_steps


class Progress:
    """A bar over tokens a row, or seconds of the row that is furthest behind; the speed is that of all rows."""

    def __init__(self, rows: int, most: int, seconds: float | None) -> None:
        total, count = (most, "{n} of {total} tokens") if seconds is None else (seconds, "{n:.1f} of {total:g} s")
        style = f"{{desc}}: {count} |{{bar}}| {{elapsed}} < {{remaining}}{{postfix}}"
        self.bar = tqdm(desc="generating", total=total, bar_format=style)
        self.seconds, self.tokens = seconds, 0
        self.steps = [0] * rows
        """Music of each row, in steps of 10 ms."""

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def update(self, tokens: list[int | None]) -> None:
        """Note one more token of each row that goes on."""
        going = {row: token for row, token in enumerate(tokens) if token is not None}
        self.tokens += len(going)
        if elapsed := self.bar.format_dict["elapsed"]:
            self.bar.set_postfix_str(f"{self.tokens / elapsed:.0f} tokens/s", refresh=False)
        if self.seconds is None:
            self.bar.update(1)
            return
        for row, token in going.items():
            self.steps[row] += shift_steps(token)
        self.bar.update(min([self.seconds, *(self.steps[row] / STEPS_PER_SECOND for row in going)]) - self.bar.n)
