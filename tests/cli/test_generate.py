import io
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from perceivers.data.music import seconds, write_midi
from perceivers.generate.config import SamplingConfig
from perceivers.generate.loaded import Loaded, load

from .conftest import Command


@pytest.fixture
def opening(tmp_path: Path) -> Path:
    """Four keys of a fifth of a second."""
    path = tmp_path / "opening.mid"
    write_midi(np.array([376, *(event for key in range(60, 64) for event in (key, 256 + 19, 128 + key))]), path)
    return path


def stdin(text: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(text)))


def test_text_goes_to_the_screen(command: Command, text_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stdin("wörter".encode(), monkeypatch)
    done = command("generate", text_run, "--prompt", "-", "--max-tokens", 9, "--seed", 5, "--device", "cpu")
    new = load(text_run).generate("wörter", max_tokens=9, sampling=SamplingConfig(seed=5))
    assert done.code == 0
    assert done.out == bytes([*"wörter".encode(), *new]).decode(errors="replace") + "\n"


def test_all_files_of_text(command: Command, text_run: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abcdef")
    outs = ["--out", tmp_path / "new.txt", "--out", tmp_path / "new.npy"]
    args = ["--prompt", tmp_path / "a.txt", "--prompt-tokens", 2, "--max-tokens", 4, *outs]
    done = command("generate", text_run, *args)
    assert done.code == 0
    assert done.out == f"wrote {tmp_path}/new.txt\nwrote {tmp_path}/new.npy\n"
    ids = np.load(tmp_path / "new.npy")
    assert bytes(ids.tolist()) == (tmp_path / "new.txt").read_bytes()
    assert bytes(ids[:2].tolist()) == b"ab"
    assert 2 <= len(ids) <= 6


def test_all_files_of_music(command: Command, music_run: Path, opening: Path, tmp_path: Path) -> None:
    outs = [tmp_path / f"new{suffix}" for suffix in (".mid", ".wav", ".png", ".npy")]
    args = ["--prompt", opening, "--prompt-seconds", 0.5, "--seconds", 0.3]
    done = command("generate", music_run, *args, *(word for out in outs for word in ("--out", out)))
    assert done.code == 0
    assert all(out.stat().st_size > 0 for out in outs)
    ids = np.load(outs[-1])
    assert ids[:6].tolist() == [376, 60, 275, 188, 61, 275]


def test_keys_go_up_before_they_go_down_again(command: Command, music_run: Path, tmp_path: Path) -> None:
    def slips(*flags: str) -> int:
        args = ["--out", tmp_path / "new.npy", "--max-tokens", 60, *flags]
        assert command("generate", music_run, *args).code == 0
        down, found = set(), 0
        for event in np.load(tmp_path / "new.npy").tolist():
            if event < 256:
                found += (event < 128) == (event % 128 in down)
                down ^= {event % 128}
        return found

    assert slips() == 0
    assert slips("--any-keys") > 0


def test_music_stops_at_the_seconds(
    command: Command, music_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Loaded, "stream", lambda self, prompt, **_: iter([60, 256 + 39] * 100))
    args = ["generate", music_run, "--out", tmp_path / "new.npy"]
    assert command(*args, "--seconds", 1).code == 0
    ids = np.load(tmp_path / "new.npy")
    assert seconds(ids) == pytest.approx(1.2)  # the first shift that reaches it ends it
    assert len(ids) == 6
    assert command(*args).code == 0  # 30 s if nothing is said
    assert seconds(np.load(tmp_path / "new.npy")) == pytest.approx(30.4)


def test_music_that_ends_early(
    command: Command, music_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Loaded, "stream", lambda self, prompt, max_tokens, **_: iter([60, 256 + 9][:max_tokens]))
    args = ["generate", music_run, "--out", tmp_path / "new.mid", "--seconds", 1]
    assert "0.1 s in place of 1: the model ended the piece" in command(*args).err
    assert "0.0 s in place of 1: it reached 1 tokens" in command(*args, "--max-tokens", 1).err


def test_from_nothing(command: Command, text_run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_bytes(b"")
    same = [
        command("generate", text_run, "--max-tokens", 7, *more).out
        for more in ([], ["--prompt", tmp_path / "empty.txt"])
    ]
    assert same[0] == same[1]
    assert same[0] != command("generate", text_run, "--max-tokens", 7, "--seed", 1).out


def test_how_tokens_are_drawn(command: Command, text_run: Path, tmp_path: Path) -> None:
    """The flags reach the sampler: the likeliest token can be had in three ways."""
    ways = (["--temperature", 0], ["--top-k", 1], ["--top-p", 1e-9])
    outs = {command("generate", text_run, "--max-tokens", 5, *way, "--seed", seed).out for seed, way in enumerate(ways)}
    assert len(outs) == 1


def test_long_prompt(command: Command, text_run: Path, tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("abcdefghijklmnopq")
    args = ["generate", text_run, "--prompt", tmp_path / "long.txt", "--max-tokens", 3]
    done = command(*args)
    assert done.code == 0
    assert (
        "the prompt has 17 tokens, and the model reads 13 with the start token: only the last ones are read" in done.err
    )
    strict = command(*args, "--strict")
    assert strict.code == 2
    assert "shorten it with --prompt-tokens 12, or leave --strict out" in strict.err
    assert command(*args, "--strict", "--prompt-tokens", 12).code == 0


def test_ctrl_c_keeps_what_is_there(
    command: Command, text_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stream(self: Loaded, prompt: np.ndarray, **_: object) -> Iterator[int]:
        yield from b"xyz"
        raise KeyboardInterrupt

    monkeypatch.setattr(Loaded, "stream", stream)
    done = command("generate", text_run, "--out", tmp_path / "new.txt")
    assert (done.code, (tmp_path / "new.txt").read_bytes()) == (130, b"xyz")
    assert "stopped after 3 tokens" in done.err
    shown = command("generate", text_run)
    assert (shown.code, shown.out) == (130, "xyz\n")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["nowhere/of/all"], "nowhere/of/all is no directory here"),
        (["TEXT", "--prompt", "x.txt"], "x.txt: no such file"),
        (["TEXT", "--prompt", "x.mid"], "a prompt for a model of 'bytes' tokens ends in .txt or .npy"),
        (["TEXT", "--out", "x.mid"], "'bytes' tokens can be written as .txt, .npy, not as .mid"),
        (["TEXT", "--out", "nowhere/x.txt"], "there is no directory nowhere"),
        (["MUSIC"], "music needs a file to go to: --out new.mid"),
        (["MUSIC", "--out", "x.txt"], "'performance' tokens can be written as .mid, .wav, .png, .npy, not as .txt"),
        (["MUSIC", "--out", "x.mid", "--prompt", "-"], "the standard input: text can't prompt a model of music"),
        (["TEXT", "--prompt-tokens", "3"], "shorten a prompt, and none is given: add --prompt FILE"),
        (["TEXT", "--prompt", "UNKNOWN"], "the prompt holds id 999; 'bytes' ids of this model are 0..255"),
        (["TEXT", "--prompt", "UNKNOWN", "--prompt-tokens", "-1"], "--prompt-tokens -1 must be 0 or more"),
        (["TEXT", "--prompt", "UNKNOWN", "--prompt-seconds", "1"], "--prompt-seconds is for music"),
        (["TEXT", "--num-latents", "14"], "--num-latents 14 must lie in 1..13"),
        (["TEXT", "--max-tokens", "0"], "--max-tokens 0 must be at least 1"),
        (["TEXT", "--seconds", "3"], "--seconds is for music"),
        (["MUSIC", "--out", "x.mid", "--seconds", "0"], "--seconds 0 must be more than 0"),
        (["TEXT", "--temperature", "-1"], "temperature=-1.0 must be 0 (greedy) or more"),
        (["TEXT", "--temprature", "1"], "--temperature"),
        (["TEXT", "--device", "abacus"], "device 'abacus'"),
    ],
)
def test_mistakes(
    command: Command,
    text_run: Path,
    music_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    args: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    stdin(b"text", monkeypatch)
    np.save("unknown.npy", np.array([5, 999]))
    places = {"TEXT": text_run, "MUSIC": music_run, "UNKNOWN": "unknown.npy"}
    done = command("generate", *(places.get(arg, arg) for arg in args))
    assert done.code == 2
    assert said in done.err
    assert not list(tmp_path.glob("x.*"))
