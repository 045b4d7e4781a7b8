from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import perceivers
from perceivers.data.music import VELOCITY, encode_performance, seconds
from perceivers.generate.files import (
    check_output,
    first_seconds,
    output_suffixes,
    read_prompt,
    shift_steps,
    text_ids,
    write,
    write_output,
)

NOTHING = np.empty(0, np.int32)
SECOND = 256 + 99
CHORD = np.array([VELOCITY + 20, 60, 64, 256 + 49, 128 + 60, 128 + 64, SECOND, 67, 256 + 4, 128 + 67])
"""Two keys for half a second, a second of silence, one key for 50 ms."""


@pytest.mark.parametrize("kind", [np.asarray, list, torch.tensor, lambda ids: np.asarray(ids, np.uint16)])
def test_ids_of_any_kind_become_files(tmp_path: Path, kind: Any) -> None:
    ids = kind(CHORD)
    for name in ("a.mid", "a.wav", "a.png", "a.npy"):
        perceivers.write(ids, tmp_path / name)
        assert (tmp_path / name).stat().st_size > 0
    assert encode_performance(tmp_path / "a.mid").tolist() == CHORD.tolist()
    assert np.load(tmp_path / "a.npy").tolist() == CHORD.tolist()
    write([*b"text"], str(tmp_path / "a.txt"))
    write(CHORD, tmp_path / "b.txt", tokenizer="ids")
    assert (tmp_path / "a.txt").read_bytes() == b"text"
    assert (tmp_path / "b.txt").read_text().split() == [str(event) for event in CHORD]


@pytest.mark.parametrize(
    ("ids", "name", "said"),
    [
        ([[60, 61]], "a.mid", r"ids of shape \(1, 2\) must have one axis"),
        ([60.0], "a.mid", "ids are integers, these are float64"),
        ([390], "a.mid", "id 390 is no performance event, they are 0..387"),
        ([-1], "a.mid", "id -1 is no performance event"),
        ([300], "a.txt", "ids 300 to 300 are not all bytes, 0..255; are they plain ids?"),
        ([60], "a.mp3", "can be written as .mid, .wav, .png, .npy, not as .mp3"),
        ([], "a.png", "there is no note to draw in 0 events"),
    ],
)
def test_ids_that_cannot_be_written(tmp_path: Path, ids: list[Any], name: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        write(ids, tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("tokenizer", "suffix", "ids"),
    [
        ("performance", ".mid", CHORD),
        ("performance", ".npy", CHORD),
        ("bytes", ".txt", np.array([0, 10, 13, 255, 104])),
        ("bytes", ".npy", np.array([0, 10, 13, 255, 104])),
        ("ids", ".txt", np.array([70000, 0, 3])),
        ("ids", ".npy", np.array([70000, 0, 3])),
        ("copy", ".txt", np.array([1, 2, 2, 1])),
        ("ids", ".txt", NOTHING),
    ],
)
def test_written_and_read_again(tmp_path: Path, tokenizer: str, suffix: str, ids: np.ndarray) -> None:
    path = tmp_path / f"new{suffix}"
    write_output(path, ids[:2], ids[2:], tokenizer)
    assert read_prompt(path, tokenizer).tolist() == ids.tolist()


def test_music_to_hear_and_see(tmp_path: Path) -> None:
    for name, magic in (("new.wav", b"RIFF"), ("new.png", b"\x89PNG"), ("new.MID", b"MThd")):
        write_output(tmp_path / name, CHORD[:4], CHORD[4:], "performance")
        assert (tmp_path / name).read_bytes()[:4] == magic


def test_prompt_from_a_midi_file_is_what_the_store_holds(tmp_path: Path) -> None:
    path = tmp_path / "a.midi"
    write_output(tmp_path / "a.mid", CHORD, NOTHING, "performance")
    (tmp_path / "a.mid").rename(path)
    assert read_prompt(path, "performance").tolist() == encode_performance(path).tolist()


def test_text_of_integers_and_of_bytes() -> None:
    assert text_ids(b"7 11\n13", "ids", name="x").tolist() == [7, 11, 13]
    assert text_ids(b"7 11", "bytes", name="x").tolist() == [55, 32, 49, 49]
    with pytest.raises(ValueError, match="x: needs integers with white space between"):
        text_ids(b"7 eleven", "ids", name="x")
    with pytest.raises(ValueError, match="x: text can't prompt a model of music"):
        text_ids(b"7", "performance", name="x")


def test_prompts_that_can_not_be_read(tmp_path: Path) -> None:
    for tokenizer, said in (("performance", r"ends in \.mid or \.midi or \.npy"), ("bytes", r"ends in \.txt or \.npy")):
        with pytest.raises(ValueError, match=said):
            read_prompt(tmp_path / "x.docx", tokenizer)
    with pytest.raises(FileNotFoundError, match=r"x\.txt: no such file"):
        read_prompt(tmp_path / "x.txt", "bytes")
    path = tmp_path / "x.npy"
    path.write_bytes(b"no array")
    with pytest.raises(ValueError, match=r"not a \.npy file of integers"):
        read_prompt(path, "ids")
    for wrong in (np.zeros((2, 3), int), np.zeros(3)):
        np.save(path, wrong)
        with pytest.raises(ValueError, match="needs integers with one axis"):
            read_prompt(path, "ids")
    (tmp_path / "x.mid").write_bytes(b"no music")
    with pytest.raises(ValueError, match="not a MIDI file"):
        read_prompt(tmp_path / "x.mid", "performance")


def test_outputs_that_can_not_be_written(tmp_path: Path) -> None:
    said = r"'bytes' tokens can be written as \.txt, \.npy, not as \.mid"
    with pytest.raises(ValueError, match=said):
        check_output(tmp_path / "x.mid", "bytes")
    with pytest.raises(ValueError, match="not as a file without a suffix"):
        write_output(tmp_path / "x", CHORD, NOTHING, "performance")
    with pytest.raises(FileNotFoundError, match="there is no directory"):
        check_output(tmp_path / "nowhere/x.npy", "ids")
    (tmp_path / "folder.npy").mkdir()
    with pytest.raises(FileExistsError, match="a directory has this name"):  # before anything is generated
        check_output(tmp_path / "folder.npy", "ids")
    assert output_suffixes("performance") == (".mid", ".wav", ".png", ".npy")


def test_nothing_to_draw(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no note to draw"):
        write_output(tmp_path / "x.png", NOTHING, NOTHING, "performance")


def test_time_of_events() -> None:
    assert [shift_steps(event) for event in (60, 188, 256, SECOND, VELOCITY)] == [0, 0, 1, 100, 0]
    assert sum(shift_steps(int(event)) for event in CHORD) / 100 == seconds(CHORD)


@pytest.mark.parametrize(
    ("limit_s", "events"), [(0.0, 3), (0.4, 3), (0.5, 6), (1.0, 6), (1.5, 8), (1.55, 10), (9.0, 10)]
)
def test_opening(limit_s: int | float, events: int) -> None:
    """Events up to the shift that would pass the limit."""
    assert first_seconds(CHORD, float(limit_s)).tolist() == CHORD[:events].tolist()


@pytest.mark.parametrize("limit_s", [0.07, 0.29, 0.57, 0.58, 1.0, 1.13])
def test_an_event_at_the_limit_is_kept_whatever_follows(limit_s: float) -> None:
    """Times are whole steps of 10 ms: a hundred shifts of one step are a second, not a little less or more."""
    steps = round(100 * limit_s)
    ids = np.array([60] + [256] * steps + [61])
    assert first_seconds(ids, limit_s).tolist() == ids.tolist()
    assert first_seconds(np.append(ids, [256] * 50), limit_s).tolist() == ids.tolist()


def test_an_id_that_no_file_of_ids_holds(tmp_path: Path) -> None:
    """As int64 it would be negative."""
    with pytest.raises(ValueError, match="id 9223372036854775811 is larger than any id"):
        write(np.array([3, 2**63 + 3], np.uint64), tmp_path / "a.npy")
    np.save(tmp_path / "b.npy", np.array([3, 2**63 + 3], np.uint64))
    with pytest.raises(ValueError, match=r"b\.npy: id 9223372036854775811 is larger than any id"):
        read_prompt(tmp_path / "b.npy", "ids")
