"""Event ids against those of Magenta's note-seq, for small files of our own and twelve real performances."""

import hashlib
import json
import os
import zipfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from perceivers.data.music import encode_notes, encode_performance, notes_of, seconds, stretch, write_midi

GOLDENS = Path(__file__).parent / "goldens" / "performance_tokens" / "asap_note_seq.json"
CASES = json.loads(GOLDENS.read_text())["cases"]
SMALL = json.loads((Path(__file__).parent / "goldens" / "small_midi" / "note_seq.json").read_text())
RECORDINGS = os.environ.get("PERCEIVERS_ASAP")

each_case = pytest.mark.parametrize("case", CASES, ids=[case["path"] for case in CASES])


@cache
def members_by_sha256(path: str) -> dict[str, str]:
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith((".mid", ".midi"))]
        return {hashlib.sha256(archive.read(name)).hexdigest(): name for name in names}


@pytest.mark.parametrize("case", SMALL, ids=range(len(SMALL)))
def test_every_token_of_a_small_file(case: dict) -> None:
    assert encode_performance(bytes.fromhex(case["midi"])).tolist() == case["tokens"]


@pytest.mark.skipif(
    not RECORDINGS,
    reason="set PERCEIVERS_ASAP to a zip of the ASAP performances; their licence (CC BY-NC-SA 4.0) forbids shipping",
)
@each_case
def test_every_token_of_a_recording(case: dict) -> None:
    assert RECORDINGS is not None
    with zipfile.ZipFile(RECORDINGS) as archive:
        data = archive.read(members_by_sha256(RECORDINGS)[case["midi_sha256"]])
    ids = encode_performance(data, name=case["path"])
    assert ids[:2000].tolist() == case["first_2000"]
    assert ids[-200:].tolist() == case["last_200"]
    assert len(ids) == case["num_tokens"]
    assert hashlib.sha256(ids.astype("<i4").tobytes()).hexdigest() == case["tokens_sha256_int32le"]
    assert (ids < 128).sum() == case["num_notes"]
    assert seconds(ids) == pytest.approx(case["total_time_s"], abs=0.005 + 1e-6)


def in_steps(ids: np.ndarray) -> list[tuple[int, set[int]]]:
    """Each moment's step and the keys that go down or up at it."""
    moments: dict[int, set[int]] = {}
    now = 0
    for event in ids.tolist():
        if 256 <= event < 356:
            now += event - 255
        elif event < 256:
            moments.setdefault(now, set()).add(event)
    return sorted(moments.items())


@each_case
def test_a_midi_file_of_the_stored_tokens_gives_the_same_events(case: dict, tmp_path: Path) -> None:
    stored = np.array(case["first_2000"], dtype=np.int32)
    write_midi(stored, tmp_path / "stored.mid")
    ids = encode_performance(tmp_path / "stored.mid")

    # The file has no times between two steps, so the order within a step is by pitch now; all else is as stored,
    # up to the end, where the file closes the keys that are still down.
    stored_steps, steps = in_steps(stored), in_steps(ids)
    complete = sum(step < stored_steps[-1][0] for step, _ in stored_steps)
    assert steps[:complete] == stored_steps[:complete]
    assert np.array_equal(notes_of(ids), notes_of(stored))

    write_midi(ids, tmp_path / "again.mid")
    assert np.array_equal(encode_performance(tmp_path / "again.mid"), ids)


@each_case
def test_the_stored_tokens_spell_time_as_we_do(case: dict) -> None:
    stored = np.array(case["first_2000"], dtype=np.int32)
    assert np.array_equal(stretch(stored, 1.0), stored)  # takes all time shifts apart and writes them anew


@each_case
def test_the_stored_notes_come_back_in_any_order(case: dict) -> None:
    notes = notes_of(np.array(case["first_2000"], dtype=np.int32))
    shuffled = np.random.default_rng(0).permutation(notes)
    assert np.array_equal(notes_of(encode_notes(shuffled)), notes)
