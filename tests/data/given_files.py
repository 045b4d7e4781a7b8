"""Files as people have them, small."""

from pathlib import Path


def midi(*pitches: int) -> bytes:
    """A MIDI file of quarter notes at 120 a minute, one after the other."""
    notes = b"".join(b"\x00\x90" + bytes([pitch, 64]) + b"\x60\x80" + bytes([pitch, 0]) for pitch in pitches)
    track = notes + b"\x00\xff\x2f\x00"
    return b"MThd" + bytes([0, 0, 0, 6, 0, 0, 0, 1, 0, 96]) + b"MTrk" + len(track).to_bytes(4) + track


def place(root: Path, **files: bytes | str) -> Path:
    """Files by their names; a double underscore stands for a slash, and a single one before the suffix for its dot."""
    for name, content in files.items():
        path = root / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def texts(root: Path, count: int) -> Path:
    return place(root, **{f"book{index}_txt": f"this is book {index}" for index in range(count)})
