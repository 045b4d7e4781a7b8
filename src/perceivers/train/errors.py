"""What can go wrong in a run. Imports no torch."""


class TrainingError(RuntimeError):
    """A run that can't go on; the message says what to change."""
