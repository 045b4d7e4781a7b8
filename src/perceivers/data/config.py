"""What training rows are made of; imports no torch, so that `--help` answers at once."""

from typing import Literal

from perceivers.records import record

__all__ = ["CopyConfig", "DataConfig"]


@record
class DataConfig:
    """How the documents of a token store become batches.

    A document is [SOS] + its ids + [EOS]; a row is a crop of it: at most one more token than the model has
    inputs, because the last token is only predicted. Of a row's tokens the last ones get a loss, as many as the
    model has latents. Crops differ in where they end:

    - "random": every document once an epoch, with one crop whose end is uniform. This is the official loader of
      Perceiver AR. Documents count alike however long they are, so long ones are seen thinly.
    - "uniform": crops end anywhere, and every token of the split counts alike, first and last ones of documents too:
      crops at both ends of a document are taken more often, and losses of tokens that are seen less or more often than
      others count more or less (`perceivers.data.windows`). For music and books, whose lengths differ much.
    - "cover": crops end one latent window apart, as in block evaluation: every token gets a loss exactly once
      an epoch. For comparisons, and for data that is seen only once or twice.
    """

    kind: Literal["tokens"] = "tokens"
    batch_size: int = 8
    """Rows a step, over all devices together."""
    crop: Literal["random", "uniform", "cover"] = "random"
    """Which crops: "random" (official: documents count alike), "uniform" (tokens count alike), "cover" (every
    token once an epoch)."""
    min_crop: int | None = None
    """Shortest "random" crop, in model inputs (the official `minimum_crop_length`); documents that are shorter are
    taken whole. None: as many as get a loss; the shorter it is, the more losses fall on the first tokens."""
    transpose: int = 0
    """Music: each row is moved by a random number of semitones, at most this many up or down. 0: off."""
    stretch: tuple[float, ...] = (1.0,)
    """Music: each row's tempo is changed by a factor drawn from these; 1.05 makes it 5 % slower. Music
    Transformer used 0.95 0.975 1 1.025 1.05. A single 1: off."""
    late_offs: float = 0.0
    """Music: in half of the rows a share of the note-offs, drawn from 0 to this, comes late or never, and until then
    the target is that note-off: a model learns to let go of keys whose moment it missed. 0: off."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size} must be at least 1 row")
        if self.crop not in ("random", "uniform", "cover"):
            raise ValueError(f"crop={self.crop!r} must be 'random', 'uniform' or 'cover'")
        if self.min_crop is not None and self.min_crop < 1:
            raise ValueError(f"min_crop={self.min_crop} must be at least 1 input, or None")
        if self.min_crop is not None and self.crop != "random":
            why = "whose crops are fixed" if self.crop == "cover" else "which weights all tokens alike"
            raise ValueError(f"min_crop has no meaning with crop={self.crop!r}, {why}; leave it out")
        if not 0 <= self.transpose <= 12:
            raise ValueError(f"transpose={self.transpose} must lie in 0..12 semitones")
        if not 0 <= self.late_offs <= 1:
            raise ValueError(f"late_offs={self.late_offs} must lie in 0..1, a share of the note-offs; 0 is off")
        if not self.stretch or not all(0.5 <= factor <= 2 for factor in self.stretch):
            raise ValueError(f"stretch={self.stretch} must be one or more factors in 0.5..2; (1.0,) is off")
        if self.stretches and self.crop == "cover":
            raise ValueError(
                f"stretch={self.stretch} changes the number of tokens, so crop='cover' could not see each once; "
                "use crop='random' or 'uniform', or stretch=(1.0,)"
            )

    @property
    def stretches(self) -> bool:
        """Whether tempo is changed at all."""
        return any(factor != 1.0 for factor in self.stretch)


@record
class CopyConfig:
    """The copy task: a random half and then its mirror image (Hawthorne et al. 2022).

    Sequences are made as they are needed, so training never sees one twice.
    """

    kind: Literal["copy"] = "copy"
    length: int = 32
    """Tokens of a sequence, SOS and EOS included; even."""
    batch_size: int = 8
    """Rows a step at full length, over all devices together; while sequences are shorter, a step has as many more rows
    as make up for it."""
    min_mirrored: int = 1
    """Fewest mirrored tokens at the end of a training row. 1: the official crops, whose first losses fall on
    the half that nobody can predict; the number of latents: losses fall on mirrored tokens only."""
    start_length: int | None = None
    """Tokens of the first sequences when lengths grow during training; even. None: all have the full length."""
    growth_steps: int = 0
    """Steps until sequences have the full length; they grow by the same factor each step."""

    def __post_init__(self) -> None:
        if self.length < 4 or self.length % 2:
            raise ValueError(f"length={self.length} must be even and at least 4: SOS, a token, its mirror, EOS")
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size} must be at least 1 row")
        if not 1 <= self.min_mirrored <= self.length // 2:
            raise ValueError(
                f"min_mirrored={self.min_mirrored} must lie in 1..{self.length // 2}, half of length={self.length}"
            )
        start = self.start_length
        if start is not None and (not 4 <= start <= self.length or start % 2):
            raise ValueError(f"start_length={start} must be even and lie in 4..length={self.length}")
        if (start is None) != (self.growth_steps == 0) or self.growth_steps < 0:
            raise ValueError(
                f"start_length={start} and growth_steps={self.growth_steps} go together: give both, or neither"
            )

    def rows_at(self, step: int) -> int:
        """Rows of a training step, a multiple of `batch_size`: about the same number of tokens at every length."""
        return self.batch_size * (self.length // self.length_at(step))

    def length_at(self, step: int) -> int:
        """Tokens of the sequences at a training step, counted from 0; even.

        Lengths grow as `start_length * factor**step`, so that doubling always takes equally many steps.
        """
        if self.start_length is None or step >= self.growth_steps:
            return self.length
        grown = self.start_length * (self.length / self.start_length) ** (step / self.growth_steps)
        return 2 * round(grown / 2)
