import struct
import sys
import wave
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from perceivers.data import render
from perceivers.data.music import decode_performance
from perceivers.data.render import piano_roll, write_wav

CHORD = np.array([375, 60, 64, 67, 355, 188, 192, 195], dtype=np.int32)  # C major for a second
SCALE = np.array([e for key in range(48, 73, 2) for e in (key, 256 + 19, 128 + key)], dtype=np.int32)

needs_audio = pytest.mark.skipif(
    version("symusic") == "0.6.0", reason="symusic 0.6.0 cannot hand out audio: pip install 'symusic!=0.6.0'"
)


def read_wav(path: Path) -> tuple[int, np.ndarray]:
    with wave.open(str(path)) as file:
        assert (file.getnchannels(), file.getsampwidth()) == (2, 2)
        return file.getframerate(), np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, 2)


def loudness(samples: np.ndarray) -> float:
    return float(np.abs(samples).max(initial=0)) / 32767


@needs_audio
@pytest.mark.parametrize("rate", [44100, 11025])
def test_wav(rate: int, tmp_path: Path) -> None:
    write_wav(CHORD, tmp_path / "chord.wav", sample_rate_hz=rate)
    written_rate, samples = read_wav(tmp_path / "chord.wav")
    assert written_rate == rate
    assert len(samples) == pytest.approx((1 + render.TAIL_S) * rate, abs=2)
    assert 0.05 < loudness(samples[: rate // 2]) <= 1
    assert loudness(samples[-rate // 10 :]) < 0.002  # it has died away by itself


@needs_audio
def test_wav_of_a_score_is_that_of_its_ids(tmp_path: Path) -> None:
    score = decode_performance(CHORD)
    write_wav(CHORD, tmp_path / "ids.wav")
    write_wav(score, tmp_path / "score.wav")
    assert np.array_equal(read_wav(tmp_path / "ids.wav")[1], read_wav(tmp_path / "score.wav")[1])
    assert len(score.tracks) == 1  # what keeps the synthesiser going is not left behind in it


@needs_audio
def test_wav_does_not_overflow(tmp_path: Path) -> None:
    fists = np.array([387, *range(30, 90), 355], dtype=np.int32)
    write_wav(fists, tmp_path / "fists.wav")
    _, samples = read_wav(tmp_path / "fists.wav")
    assert loudness(samples) == 1.0
    clipped = (np.abs(samples.astype(int)) >= 32766).sum()
    assert clipped < 10


@needs_audio
def test_wav_of_nothing_is_silent(tmp_path: Path) -> None:
    write_wav(np.array([], dtype=np.int32), tmp_path / "silence.wav")
    _, samples = read_wav(tmp_path / "silence.wav")
    assert len(samples) == pytest.approx(render.TAIL_S * 44100, abs=2)
    assert loudness(samples) == 0


def test_wav_names_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with monkeypatch.context() as without:
        without.setattr(render, "find_spec", lambda name: None)
        with pytest.raises(ImportError, match=r"TimGM6mb.sf2 of pretty_midi: pip install 'perceivers\[music\]'"):
            write_wav(CHORD, tmp_path / "a.wav")
    score = decode_performance(CHORD)
    monkeypatch.setitem(sys.modules, "symusic", None)
    with pytest.raises(ImportError, match=r"playing needs symusic: pip install 'perceivers\[music\]'"):
        write_wav(score, tmp_path / "a.wav")
    assert not (tmp_path / "a.wav").exists()


def test_wav_says_so_if_symusic_hands_out_no_audio(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Mute:
        def __init__(self, *args: object) -> None: ...

        def render(self, *args: object) -> None:
            raise TypeError("Unable to convert function return value to a Python type!")

    monkeypatch.setattr("symusic.Synthesizer", Mute)
    with pytest.raises(ImportError, match=r"cannot hand out audio .* pip install 'symusic!=0.6.0'"):
        write_wav(CHORD, tmp_path / "a.wav")


def png_size(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    return width, height


def pixels(path: Path) -> np.ndarray:
    from matplotlib.image import imread

    return imread(path)[..., :3]


def share(picture: np.ndarray, color: str) -> float:
    """How much of a picture is nearer to `color`, at any strength on white, than to grey."""
    from matplotlib.colors import to_rgb

    away = np.array(to_rgb(color)) - 1
    tint = picture - 1
    along = (tint * away).sum(-1) / (away @ away)
    return float(((along > 0.2) & (np.abs(tint - along[..., None] * away).max(-1) < 0.05)).mean())


def test_piano_roll_shows_prompt_and_continuation_apart(tmp_path: Path) -> None:
    nothing = np.array([], dtype=np.int32)
    pictures = {}
    for name, prompt, continuation in (
        ("both", SCALE[:15], SCALE[15:]),
        ("prompt", SCALE, nothing),
        ("continuation", nothing, SCALE),
    ):
        piano_roll(tmp_path / f"{name}.png", prompt, continuation, title=f"A scale: {name}")
        assert png_size(tmp_path / f"{name}.png") == (1800, 720)
        picture = pixels(tmp_path / f"{name}.png")
        pictures[name] = (share(picture, render.PROMPT_COLOR), share(picture, render.CONTINUATION_COLOR))
    assert min(pictures["both"]) > 0.002
    assert pictures["prompt"][0] > 0.005
    assert pictures["prompt"][1] == 0
    assert pictures["continuation"][1] > 0.005
    assert pictures["continuation"][0] == 0


@pytest.mark.parametrize("key", [0, 127])
def test_piano_roll_of_one_note_at_an_end_of_the_keyboard(key: int, tmp_path: Path) -> None:
    piano_roll(tmp_path / "note.png", np.array([key, 256]), np.array([355]))
    assert png_size(tmp_path / "note.png") == (1800, 720)


def test_piano_roll_leaves_pyplot_alone(tmp_path: Path) -> None:
    was_imported = "matplotlib.pyplot" in sys.modules
    piano_roll(tmp_path / "scale.png", SCALE, SCALE)
    assert ("matplotlib.pyplot" in sys.modules) == was_imported


def test_piano_roll_needs_a_note(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"empty\.png: there is no note to draw in 2 events"):
        piano_roll(tmp_path / "empty.png", np.array([375]), np.array([355]))


def test_piano_roll_names_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'perceivers\[plots\]'"):
        piano_roll(tmp_path / "a.png", SCALE, SCALE)
