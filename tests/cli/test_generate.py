import io
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from perceivers.data.music import seconds, write_midi
from perceivers.generate import loaded
from perceivers.generate.config import DecodingConfig, SamplingConfig
from perceivers.generate.decode import Step, decode
from perceivers.generate.loaded import Loaded, load

from .conftest import Command


@pytest.fixture
def opening(tmp_path: Path) -> Path:
    """Four keys of a fifth of a second."""
    path = tmp_path / "opening.mid"
    write_midi(np.array([376, *(event for key in range(60, 64) for event in (key, 256 + 19, 128 + key))]), path)
    return path


def rows_come(monkeypatch: pytest.MonkeyPatch, *rows: list[int | None], then: BaseException | None = None) -> None:
    """Let these raw ids be what the model says, up to what is asked for."""

    def decode(*_: Any, max_tokens: int, **__: Any) -> Iterator[Step]:
        for tokens in list(zip(*rows, strict=True))[:max_tokens]:
            yield Step([None if token is None else token + 3 for token in tokens], [0.0] * len(rows))
        if then is not None:
            raise then

    monkeypatch.setattr(loaded, "decode", decode)


def stdin(text: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(text)))


def test_text_goes_to_the_screen(command: Command, text_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stdin("wörter".encode(), monkeypatch)
    done = command("generate", text_run, "--prompt", "-", "--max-tokens", 9, "--seed", 5, "--device", "cpu")
    new = load(text_run).generate("wörter", max_tokens=9, sampling=SamplingConfig(seed=5))
    assert done.code == 0
    assert done.out == bytes([*"wörter".encode(), *new]).decode(errors="replace") + "\n"


@pytest.mark.parametrize("prompt", ["Once upon a time", "wörter.", "x" * 300, "Wait... what? a.txt", "42"])
def test_a_prompt_is_text_where_the_model_reads_text(command: Command, text_run: Path, prompt: str) -> None:
    done = command("generate", text_run, "--prompt", prompt, "--max-tokens", 3, "--device", "cpu")
    assert done.code == 0
    assert done.out.startswith(prompt)


def test_a_prompt_is_a_file_where_there_is_one(
    command: Command, text_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my words.txt").write_text("abc")
    assert command("generate", text_run, "--prompt", "my words.txt", "--max-tokens", 3).out.startswith("abc")


def test_bytes_of_another_locale_are_read_as_they_are(command: Command, text_run: Path) -> None:
    prompt = "wört".encode().decode("ascii", "surrogateescape")
    assert command("generate", text_run, "--prompt", prompt, "--max-tokens", 1).out.startswith("wört")


def test_ids_are_a_prompt_too(command: Command, text_run: Path, tmp_path: Path) -> None:
    Loaded(load(text_run).model, "ids").save_pretrained(tmp_path / "ids")
    done = command("generate", tmp_path / "ids", "--prompt", "7 11 13", "--max-tokens", 3)
    assert (done.code, done.out[:8]) == (0, "7 11 13 ")
    done = command("generate", tmp_path / "ids", "--prompt", "seven")
    assert (done.code, "--prompt 'seven': needs integers with white space between" in done.err) == (2, True)


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
    rows_come(monkeypatch, [60, 256 + 39] * 100)
    args = ["generate", music_run, "--out", tmp_path / "new.npy"]
    assert command(*args, "--seconds", 1).code == 0
    ids = np.load(tmp_path / "new.npy")
    assert seconds(ids) == pytest.approx(1.2)  # the first shift that reaches it ends it
    assert len(ids) == 6
    assert command(*args).code == 0  # 30 s if nothing is said
    assert seconds(np.load(tmp_path / "new.npy")) == pytest.approx(30.0)


def test_music_that_ends_early(
    command: Command, music_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows_come(monkeypatch, [60, 256 + 9])
    args = ["generate", music_run, "--out", tmp_path / "new.mid", "--seconds", 1]
    assert "0.1 s in place of 1: the model ended the piece" in command(*args).err
    assert "0.0 s in place of 1: it reached 1 tokens" in command(*args, "--max-tokens", 1).err
    rows_come(monkeypatch, [60, 256 + 99], [256 + 19, None], [256 + 29, None])
    args += ["--samples", 3]
    assert "0.2 s in place of 1: the model ended the piece" in command(*args).err
    assert "0.0 s in place of 1: it reached 1 tokens" in command(*args, "--max-tokens", 1).err
    rows_come(monkeypatch, [60, 256 + 99], [256 + 99, None], [256 + 49, 256 + 49])
    assert "in place of" not in command(*args).err


def test_the_least_music(command: Command, music_run: Path, tmp_path: Path) -> None:
    """Some tokens at least, however little time they have."""
    done = command("generate", music_run, "--out", tmp_path / "new.npy", "--seconds", 0.001)
    assert done.code == 0
    assert len(np.load(tmp_path / "new.npy")) == 1


def test_from_nothing(command: Command, text_run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_bytes(b"")
    same = [
        command("generate", text_run, "--max-tokens", 7, *more).out
        for more in ([], ["--prompt", tmp_path / "empty.txt"])
    ]
    assert same[0] == same[1]
    assert same[0] != command("generate", text_run, "--max-tokens", 7, "--seed", 1).out


def test_how_tokens_are_drawn(command: Command, text_run: Path) -> None:
    """The flags reach the sampler: the likeliest token can be had in four ways."""
    ways = (["--temperature", 0], ["--top-k", 1], ["--top-p", 1e-9], ["--min-p", 0.999999999999])
    outs = {command("generate", text_run, "--max-tokens", 5, *way, "--seed", seed).out for seed, way in enumerate(ways)}
    assert len(outs) == 1
    assert command("generate", text_run, "--max-tokens", 5).out not in outs


def test_every_flag_arrives(command: Command, text_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, Any]] = []

    def spy(*args: Any, **options: Any) -> Iterator[Step]:
        given.append(options)
        return decode(*args, **options)

    monkeypatch.setattr(loaded, "decode", spy)
    args = ["generate", text_run, "--out", tmp_path / "new.npy", "--max-tokens", 7]
    sampling = {"temperature": 0.5, "top_k": 7, "top_p": 0.75, "min_p": 0.125, "repetition_penalty": 1.5, "seed": 3}
    decoding = {"num_latents": 4, "refill": 3, "prompt_latents": 2, "cache_dtype": "bfloat16"}
    flags = [word for name, value in (sampling | decoding).items() for word in (f"--{name.replace('_', '-')}", value)]
    assert command(*args, "--samples", 2, *flags).code == 0
    assert command(*args, "--no-cached").code == 0
    assert [(options["max_tokens"], options["samples"]) for options in given] == [(7, 2), (7, 1)]
    assert (given[0]["sampling"], given[0]["decoding"]) == (SamplingConfig(**sampling), DecodingConfig(**decoding))
    assert (given[1]["sampling"], given[1]["decoding"]) == (SamplingConfig(), DecodingConfig(cached=False))


def test_samples_are_files_of_their_own(command: Command, text_run: Path, tmp_path: Path) -> None:
    """The j-th has seed + j."""
    args = ["--samples", 3, "--max-tokens", 6, "--seed", 5, "--out", tmp_path / "new.txt", "--out", tmp_path / "a.npy"]
    done = command("generate", text_run, *args)
    assert done.code == 0
    names = [f"{tmp_path}/{name}" for j in "123" for name in (f"new-{j}.txt", f"a-{j}.npy")]
    assert done.out == "".join(f"wrote {name}\n" for name in names)
    assert sorted(map(str, tmp_path.iterdir())) == sorted(names)
    model = load(text_run)
    alone = [model.generate(max_tokens=6, sampling=SamplingConfig(seed=seed)) for seed in (5, 6, 7)]
    for j, ids in enumerate(alone, 1):
        assert np.load(tmp_path / f"a-{j}.npy").tolist() == ids.tolist()
        assert (tmp_path / f"new-{j}.txt").read_bytes() == bytes(ids.tolist())
    assert len({tuple(ids.tolist()) for ids in alone}) == 3


def test_samples_of_music(command: Command, music_run: Path, opening: Path, tmp_path: Path) -> None:
    args = ["--prompt", opening, "--samples", 3, "--seconds", 0.3, "--out", tmp_path / "new.mid"]
    assert command("generate", music_run, *args).code == 0
    written = [tmp_path / f"new-{j}.mid" for j in (1, 2, 3)]
    assert sorted(path for path in tmp_path.iterdir() if path != opening) == written
    assert len({path.read_bytes() for path in written}) == 3


def test_long_prompt(command: Command, text_run: Path, tmp_path: Path) -> None:
    """The model reads 13; its 5 latents are rebuilt when 3 tokens came after the first, and those need room."""
    (tmp_path / "long.txt").write_text("abcdefghijklmnopq")
    args = ["generate", text_run, "--prompt", tmp_path / "long.txt", "--max-tokens", 3]
    done = command(*args)
    assert done.code == 0
    said = "of the prompt's 17 tokens the model can read 10 before 3 new ones"
    assert f"perceivers: warning: {said}: only the last ones are read\n" in done.err
    strict = command(*args, "--strict")
    assert strict.code == 2
    assert f"error: {said}: shorten it with --prompt-tokens 10, or leave --strict out" in strict.err
    assert strict.out == ""
    at_most = command(*args, "--strict", "--prompt-tokens", 10)
    assert (at_most.code, at_most.err) == (0, "")
    assert command(*args, "--strict", "--prompt-tokens", 11).code == 2
    slow = command(*args, "--strict", "--no-cached", "--prompt-tokens", 12)
    assert (slow.code, slow.err) == (0, "")


@pytest.mark.parametrize("samples", [1, 2])
def test_warnings_are_one_line_each(command: Command, text_run: Path, tmp_path: Path, samples: int) -> None:
    args = ["--max-tokens", 3, "--num-latents", 7, "--samples", samples, "--out", tmp_path / "new.txt"]
    done = command("generate", text_run, *args)
    assert done.code == 0
    said = [line for line in done.err.splitlines() if "latents" in line]
    assert len(said) == 1
    assert said[0].startswith("perceivers: warning: num_latents=7 is more than the 5 of training: slower, and ")
    assert "UserWarning" not in done.err


def test_lighter_weights(command: Command, text_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[torch.dtype] = []

    def spy(model: nn.Module, *args: Any, **options: Any) -> Iterator[Step]:
        given.append(next(model.parameters()).dtype)
        return decode(model, *args, **options)

    monkeypatch.setattr(loaded, "decode", spy)
    args = ["generate", text_run, "--max-tokens", 5]
    assert command(*args).code == 0
    assert command(*args, "--weights", "bfloat16").code == 0
    assert given == [torch.float32, torch.bfloat16]
    assert command(*args, "--weights", "int3").code == 2


def test_ctrl_c_keeps_what_is_there(
    command: Command, text_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows_come(monkeypatch, [*b"xyz"], then=KeyboardInterrupt())
    done = command("generate", text_run, "--out", tmp_path / "new.txt")
    assert (done.code, (tmp_path / "new.txt").read_bytes()) == (130, b"xyz")
    assert "stopped after 3 tokens" in done.err
    shown = command("generate", text_run)
    assert (shown.code, shown.out) == (130, "xyz\n")
    rows_come(monkeypatch, [*b"xyz"], [ord("u"), None, None], [None] * 3, then=KeyboardInterrupt())
    done = command("generate", text_run, "--samples", 3, "--out", tmp_path / "new.txt")
    assert done.code == 130
    assert [(tmp_path / f"new-{j}.txt").read_bytes() for j in (1, 2, 3)] == [b"xyz", b"u", b""]
    assert "stopped after 4 tokens" in done.err


def test_an_error_keeps_what_is_there(
    command: Command, text_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows_come(monkeypatch, [*b"xyz"], then=FloatingPointError("not a number"))
    done = command("generate", text_run, "--out", tmp_path / "new.txt")
    assert (done.code, (tmp_path / "new.txt").read_bytes()) == (1, b"xyz")
    assert done.err.endswith("perceivers: stopped after 3 tokens\nperceivers: error: not a number\n")
    rows_come(monkeypatch, [], then=FloatingPointError("not a number"))
    done = command("generate", text_run, "--out", tmp_path / "none.txt")
    assert (done.code, (tmp_path / "none.txt").exists()) == (1, False)


@pytest.mark.parametrize("order", [(".png", ".mid", ".npy"), (".npy", ".mid", ".png")])
def test_a_file_that_fails_keeps_none_of_the_others_back(
    command: Command, music_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: tuple[str, ...]
) -> None:
    """A rest has no note to draw, and the samples with notes are drawn nevertheless."""
    rows_come(monkeypatch, [256 + 39] * 3, [60, 256 + 39, 128 + 60])
    outs = [word for suffix in order for word in ("--out", tmp_path / f"a{suffix}")]
    done = command("generate", music_run, "--samples", 2, "--max-tokens", 3, *outs)
    assert done.code == 1
    assert f"perceivers: error: {tmp_path}/a-1.png was not written: there is no note to draw in 3 events\n" in done.err
    names = ["a-1.mid", "a-1.npy", "a-2.mid", "a-2.npy", "a-2.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert sorted(done.out.splitlines()) == [f"wrote {tmp_path}/{name}" for name in names]


def test_packages_are_missed_before_the_work(
    command: Command, music_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perceivers.generate.files.find_spec", lambda name: None)
    done = command("generate", music_run, "--out", tmp_path / "a.npy", "--out", tmp_path / "a.mid")
    assert (done.code, list(tmp_path.iterdir())) == (2, [])
    assert f"{tmp_path}/a.mid: writing it needs symusic: pip install 'perceivers[music]'" in done.err


def test_weights_that_are_no_numbers(command: Command, text_run: Path, tmp_path: Path) -> None:
    model = load(text_run).model
    model.get_parameter("logits.bias").data[3] = torch.nan
    Loaded(model, "bytes").save_pretrained(tmp_path)
    for name in ("generate", "evaluate", "predict"):
        done = command(name, tmp_path, *(["x"] if name == "predict" else []))
        assert (done.code, done.out) == (1, "")
        assert done.err.startswith(f"perceivers: error: {tmp_path}: its weights are not numbers (NaN in logits.bias)")
    model.get_parameter("logits.bias").data[3] = torch.inf
    Loaded(model, "bytes").save_pretrained(tmp_path)
    for temperature in (0, 1):
        done = command("generate", tmp_path, "--max-tokens", 3, "--temperature", temperature)
        assert done.code == 1
        assert "what the model predicts is not a number (NaN)" in done.err


def test_ctrl_c_stops_music(command: Command, music_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is told that it is short."""
    rows_come(monkeypatch, [60, 256 + 9], then=KeyboardInterrupt())
    done = command("generate", music_run, "--out", tmp_path / "new.npy", "--seconds", 1)
    assert (done.code, np.load(tmp_path / "new.npy").tolist()) == (130, [60, 256 + 9])
    assert "stopped after 2 tokens" in done.err
    assert "in place of" not in done.err


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["nowhere/of/all"], "nowhere/of/all does not exist"),
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
        (["TEXT", "--num-latents", "14"], "num_latents=14 must lie in 1..13, the length of the model's input"),
        (["TEXT", "--num-latents", "0"], "num_latents=0 must be at least 1"),
        (["TEXT", "--refill", "5"], "refill=5 must be at least 1 and less than num_latents=5"),
        (["TEXT", "--refill", "3", "--num-latents", "3"], "refill=3 must be less than num_latents=3"),
        (["TEXT", "--prompt-latents", "6"], "prompt_latents=6 must lie in 1..5"),
        (["TEXT", "--samples", "0"], "--samples 0 must be at least 1"),
        (["TEXT", "--samples", "2"], "--samples 2 needs a file name to number: --out new.txt writes new-1.txt, new-2"),
        (["TEXT", "--prompt", "texts/opening"], "texts/opening: a prompt for a model of 'bytes' tokens ends in"),
        (
            ["MUSIC", "--prompt", "Once upon", "--out", "x.mid"],
            "--prompt 'Once upon': text can't prompt a model of music",
        ),
        (["TEXT", "--prompt", "-", "--prompt-tokens", "11", "--strict"], "shorten it with --prompt-tokens 9, or leave"),
        (["TEXT", "--max-tokens", "0"], "--max-tokens 0 must be at least 1"),
        (["TEXT", "--seconds", "3"], "--seconds is for music"),
        (["MUSIC", "--out", "x.mid", "--seconds", "0"], "--seconds 0 must be more than 0"),
        (["MUSIC", "--out", "x.mid", "--seconds", "inf"], "seconds=inf must be a finite number"),
        (["MUSIC", "--out", "x.mid", "--seconds", "nan"], "seconds=nan must be a finite number"),
        (["TEXT", "--temperature", "-1"], "temperature=-1.0 must be 0 (greedy) or more"),
        (["TEXT", "--top-p", "0"], "top_p=0.0 must lie in (0, 1]"),
        (["TEXT", "--top-p", "1.5"], "top_p=1.5 must lie in (0, 1]"),
        (["TEXT", "--min-p", "1"], "min_p=1.0 must lie in [0, 1)"),
        (["TEXT", "--repetition-penalty", "0"], "repetition_penalty=0.0 must be above 0"),
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
    stdin(b"a long text", monkeypatch)
    np.save("unknown.npy", np.array([5, 999]))
    places = {"TEXT": text_run, "MUSIC": music_run, "UNKNOWN": "unknown.npy"}
    done = command("generate", *(places.get(arg, arg) for arg in args))
    assert done.code == 2
    assert said in done.err
    assert not list(tmp_path.glob("x.*"))
