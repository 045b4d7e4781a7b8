"""Performances to hear and to look at: WAV files and piano rolls."""

import wave
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Integer

from perceivers.data.music import decode_performance, notes_of, seconds
from perceivers.writing import replace_file, write_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["piano_roll", "write_wav"]

SOUNDFONT = "TimGM6mb.sf2"
TAIL_S = 1.5  # for the last notes to die away
PROMPT_COLOR, CONTINUATION_COLOR = "#2f6db3", "#e0702c"
BLACK_KEYS = (1, 3, 6, 8, 10)


def write_wav(score_or_ids: Any, path: Path | str, *, sample_rate_hz: int = 44100) -> None:
    """Play a performance on a sampled piano into a 16-bit stereo WAV file.

    Args:
        score_or_ids: Event ids, or a `symusic.Score` with any instruments.
        path: The file to write.
        sample_rate_hz: Samples per second and channel.

    Raises:
        ValueError: An id is not in 0..387.
        ImportError: symusic or the soundfont is missing.
    """
    soundfont = _soundfont()
    score = decode_performance(score_or_ids) if isinstance(score_or_ids, np.ndarray) else score_or_ids
    audio = _synthesise(score, soundfont, sample_rate_hz)
    samples = np.rint(audio.T * (32767 / max(1.0, np.abs(audio).max(initial=0.0)))).astype("<i2")

    def write(partial: Path) -> None:
        with wave.open(str(partial), "wb") as file:
            file.setnchannels(2)
            file.setsampwidth(2)
            file.setframerate(sample_rate_hz)
            file.writeframes(samples.tobytes())

    replace_file(Path(path), write)


def _soundfont() -> Path:
    """The General MIDI soundfont that pretty_midi's package carries; the package itself is not imported."""
    spec = find_spec("pretty_midi")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (path := Path(folder) / SOUNDFONT).is_file():
            return path
    raise ImportError(f"playing needs the soundfont {SOUNDFONT} of pretty_midi: pip install 'perceivers[music]'")


def _synthesise(score: Any, soundfont: Path, sample_rate_hz: int) -> Float[np.ndarray, "2 samples"]:
    """Render a score and `TAIL_S` after it."""
    try:
        from symusic import Note, Synthesizer, Track
    except ImportError as error:
        raise ImportError("playing needs symusic: pip install 'perceivers[music]'") from error
    score = score.to("second")
    end_s = score.end() + TAIL_S
    # The synthesiser stops dead at the last note's end. A note after the tail keeps it going; it is cut off again.
    score.tracks.append(Track(notes=[Note(end_s, 0.1, 60, 1, ttype="second")], ttype="second"))
    try:
        audio = Synthesizer(str(soundfont), sample_rate_hz, 0).render(score, True)
    except TypeError as error:
        raise ImportError(
            f"symusic {version('symusic')} cannot hand out audio (0.6.0 has that fault): pip install 'symusic!=0.6.0'"
        ) from error
    return audio[:, : round(end_s * sample_rate_hz)]


def piano_roll(
    path_png: Path | str,
    ids_prompt: Integer[np.ndarray, " prompt"],
    ids_continuation: Integer[np.ndarray, " continuation"],
    title: str = "",
) -> None:
    """Draw a performance: time to the right, pitch upwards, louder notes stronger; prompt and continuation apart.

    Args:
        path_png: The picture to write.
        ids_prompt: Events that were given; may be empty.
        ids_continuation: Events that a model added; may be empty.
        title: Stands above the picture.

    Raises:
        ValueError: An id is not in 0..387, or there is no note to draw.
        ImportError: matplotlib is missing.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch
    except ImportError as error:
        raise ImportError("drawing needs matplotlib: pip install 'perceivers[plots]'") from error
    ids = np.concatenate([ids_prompt, ids_continuation])
    notes, boundary_s, end_s = notes_of(ids), seconds(ids_prompt), seconds(ids)
    if len(notes) == 0:
        raise ValueError(f"{path_png}: there is no note to draw in {len(ids)} events")

    figure = Figure(figsize=(12, 4.8), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _keyboard(axes, int(notes["pitch"].min()), int(notes["pitch"].max()))
    given = notes["onset_s"] < boundary_s
    legend = []
    for part, color, label in (
        (notes[given], PROMPT_COLOR, "prompt"),
        (notes[~given], CONTINUATION_COLOR, "continuation"),
    ):
        if len(part):
            _draw(axes, part, color)
            legend.append(Patch(color=color, label=label))
    if 0 < boundary_s < end_s:
        axes.axvline(boundary_s, color="#333333", linewidth=1, linestyle=(0, (4, 3)))
    axes.set_xlim(0, end_s)
    axes.set_xlabel("time in seconds")
    axes.set_title(title, loc="left", fontsize=12)
    axes.legend(handles=legend, loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False, borderaxespad=0.2)
    write_figure(Path(path_png), figure)


def _keyboard(axes: "Axes", lowest: int, highest: int) -> None:
    """Rows for the keys between two pitches, the black ones shaded, each C with its name."""
    bottom, top = max(0, lowest - 3), min(127, highest + 3)
    top = max(top, min(127, bottom + 12))  # an octave at least, so that there is a C
    for pitch in range(bottom, top + 1):
        if pitch % 12 in BLACK_KEYS:
            axes.axhspan(pitch - 0.5, pitch + 0.5, color="#f1f2f4", linewidth=0, zorder=0)
    names = [pitch for pitch in range(0, 128, 12) if bottom <= pitch <= top]
    axes.set_yticks(names, [f"C{pitch // 12 - 1}" for pitch in names])
    axes.hlines([pitch - 0.5 for pitch in names], 0, 1, transform=axes.get_yaxis_transform(), color="#c9ccd1", lw=0.8)
    axes.set_ylim(bottom - 0.5, top + 0.5)
    axes.set_ylabel("pitch")
    axes.tick_params(length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _draw(axes: "Axes", notes: np.ndarray, color: str) -> None:
    """Draw notes as bars, the louder the more opaque, with a line where each is struck."""
    from matplotlib.collections import LineCollection, PolyCollection
    from matplotlib.colors import to_rgba

    left, right, middle = notes["onset_s"], notes["offset_s"], notes["pitch"]
    low, high = middle - 0.42, middle + 0.42
    corners = np.stack([[left, low], [left, high], [right, high], [right, low]]).transpose(2, 0, 1)
    colors = np.tile(to_rgba(color), (len(notes), 1))
    colors[:, 3] = 0.15 + 0.75 * notes["velocity"] / 127
    axes.add_collection(PolyCollection(list(corners), facecolors=colors, edgecolors="none", zorder=2))
    axes.add_collection(LineCollection(list(corners[:, :2]), colors=color, linewidths=0.9, zorder=3))
