import errno
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from perceivers.train import checkpoint, loop
from perceivers.train.checkpoint import checkpoints

from .conftest import SMALL_MODEL, TINY, Command, write_store


def steps(run: Path) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in checkpoints(run)]


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_run_on_text(command: Command, text_store: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    flags = ["--max-steps", 4, "--log-every", 2, "--save-every", 2, "--eval-every", 2, "--sample-every", 2]
    flags += ["--sample-tokens", 7, "--optim.warmup-steps", 1]
    done = command("train", "text_small", "--data", text_store, "--out", out, *flags, *TINY)
    assert done.code == 0
    assert f"{out}: 4 steps, " in done.out
    assert f"perceivers evaluate {out}" in done.out
    assert f"perceivers generate {out}\n" in done.out
    assert steps(out) == [2, 4]
    assert [row["step"] for row in metrics(out) if "train/nats" in row] == [2, 4]
    assert [row["step"] for row in metrics(out) if "validation/nats" in row] == [2, 4]
    assert [path.name for path in sorted((out / "samples").iterdir())] == ["step-00000002.txt", "step-00000004.txt"]
    record = json.loads((out / "data.json").read_text())
    assert record["path"] == str(text_store)
    assert record["splits"]["test"] == {"documents": 2, "tokens": 60}


def test_run_on_music_writes_midi(command: Command, music_store: Path, tmp_path: Path) -> None:
    flags = ["--max-steps", 1, "--sample-every", 1, "--sample-tokens", 5, "--log-every", 1, "--optim.warmup-steps", 0]
    done = command("train", "music_small", "--data", music_store, "--out", tmp_path / "run", *flags, *TINY)
    assert done.code == 0
    assert (tmp_path / "run/samples/step-00000001.mid").read_bytes()[:4] == b"MThd"
    assert "--out" in done.out.splitlines()[-1]


def test_copy_task_needs_no_data(command: Command, tmp_path: Path) -> None:
    flags = ["--max-steps", 2, "--eval-tokens", 32, "--data.batch-size", 2, "--model.dim", 8, "--device", "cpu"]
    done = command("train", "copy_tiny", "--out", tmp_path / "run", *flags)
    assert done.code == 0
    assert 0 <= metrics(tmp_path / "run")[-1]["validation/accuracy"] <= 1
    assert not (tmp_path / "run/data.json").exists()


def test_no_validation_split(command: Command, tmp_path: Path) -> None:
    write_store(tmp_path / "store", tokenizer="bytes", vocab_size=256, splits="train")
    store, out = tmp_path / "store", tmp_path / "run"
    assert command("train", "text_small", "--data", store, "--out", out, "--max-steps", 1, *TINY).code == 0
    assert all("validation/nats" not in row for row in metrics(out))


def test_settings_from_a_file(command: Command, text_store: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"preset: text_small\ndata: {text_store}\nmax_steps: 3\noptim: {{lr: 2e-4}}\n")
    done = command("train", path, "--out", tmp_path / "run", "--max-steps", 1, *TINY)
    assert done.code == 0
    assert "lr: 0.0002" in (tmp_path / "run/config.yaml").read_text()
    assert steps(tmp_path / "run") == [1]
    path.write_text("preset: text_small\noptim: {lrr: 2e-4}\n")
    wrong = command("train", path, "--out", tmp_path / "other")
    assert wrong.code == 2
    assert "--optim.lrr" in wrong.err
    assert "Perhaps you meant" in wrong.err


def test_weights_of_another_run(command: Command, text_store: Path, text_run: Path, tmp_path: Path) -> None:
    args = ["train", text_run, "--data", text_store, "--out", tmp_path / "run", "--init", text_run, "--max-steps", 1]
    assert command(*args).code == 0
    assert steps(tmp_path / "run") == [1]


class TestResume:
    @pytest.fixture
    def run(self, command: Command, text_store: Path, tmp_path: Path) -> Path:
        out = tmp_path / "run"
        args = ["train", "text_small", "--data", text_store, "--out", out, "--max-steps", 2, *TINY]
        assert command(*args).code == 0
        return out

    def test_by_the_directory_alone(self, command: Command, run: Path) -> None:
        done = command("train", run, "--resume", "--max-steps", 3)
        assert done.code == 0
        assert steps(run) == [2, 3]
        assert "max_steps is 3 from here on; it was 2" in done.err

    def test_by_preset_and_out(self, command: Command, run: Path, text_store: Path) -> None:
        args = ["train", "text_small", "--out", run, "--resume", "--max-steps", 3, *TINY]
        assert command(*args).code == 0
        assert command(*args, "--data", text_store, "--max-steps", 4).code == 0
        assert steps(run) == [3, 4]

    def test_another_learning_rate_is_noted(self, command: Command, run: Path) -> None:
        done = command("train", run, "--resume", "--max-steps", 3, "--optim.lr", "1e-5", "--model.dropout", "0.3")
        assert done.code == 0
        assert "optim.lr is 1e-05 from here on" in done.err
        assert "model.dropout is 0.3 from here on" in done.err

    def test_another_model_is_refused(self, command: Command, run: Path) -> None:
        done = command("train", run, "--resume", "--model.dim", 16)
        assert done.code == 2
        assert "was begun with another model, --model.dim 8: go on with its own settings" in done.err

    def test_a_directory_without_a_run(self, command: Command, tmp_path: Path) -> None:
        done = command("train", tmp_path, "--resume")
        assert (done.code, "config.yaml does not exist" in done.err) == (2, True)

    def test_changed_data(self, command: Command, text_store: Path, tmp_path: Path) -> None:
        store, out = tmp_path / "store", tmp_path / "other"
        write_store(store, tokenizer="bytes", vocab_size=256)
        args = ["train", "text_small", "--data", store, "--out", out, "--max-steps", 1, *TINY]
        assert command(*args).code == 0
        write_store(store, tokenizer="bytes", vocab_size=256, splits="train test")
        by_itself = command("train", out, "--resume", "--max-steps", 2)
        assert by_itself.code == 2
        assert f"the data in {store} has changed since {out} was trained on it" in by_itself.err
        named = command("train", out, "--resume", "--max-steps", 2, "--data", store)
        assert named.code == 2
        assert "the data has changed since" in named.err
        assert steps(out) == [1]

    def test_data_that_is_gone(self, command: Command, run: Path) -> None:
        record = json.loads((run / "data.json").read_text())
        (run / "data.json").write_text(json.dumps(record | {"path": "/nowhere/store"}))
        done = command("train", run, "--resume", "--max-steps", 3)
        assert done.code == 2
        assert "is not there any more: say where it is with --data" in done.err


def test_ctrl_c_saves(command: Command, text_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_at(3, KeyboardInterrupt(), monkeypatch)
    out = tmp_path / "run"
    done = command("train", "text_small", "--data", text_store, "--out", out, *TINY)
    assert done.code == 130
    assert f"stopped and saved: {out}/checkpoints/step-00000002" in done.err
    assert f"go on with: perceivers train {out} --resume" in done.err
    assert steps(out) == [2]


def stop_at(call: int, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the training step number `call` raise `error`."""
    step, calls = loop.train_step, []

    def train_step(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            raise error
        return step(*args)

    monkeypatch.setattr(loop, "train_step", train_step)


def test_out_of_memory(command: Command, text_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_at(2, MemoryError(), monkeypatch)
    done = command("train", "text_small", "--data", text_store, "--out", tmp_path / "run", *TINY)
    assert done.code == 1
    assert "out of memory at step 1: lower --data.batch-size" in done.err
    assert len(done.err.splitlines()[-1]) > 40


def test_full_disk(command: Command, text_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run ends with code 1, and what was saved before is whole."""
    out = tmp_path / "run"
    args = ["train", "text_small", "--data", text_store, "--out", out, "--save-every", 1, *TINY]
    assert command(*args, "--max-steps", 1).code == 0
    before = {path: path.read_bytes() for path in (out / "checkpoints").rglob("*") if path.is_file()}

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_tensors", full)
    done = command(*args, "--max-steps", 2, "--resume")
    assert done.code == 1
    assert "could not save step 2" in done.err
    assert {path: path.read_bytes() for path in (out / "checkpoints").rglob("*") if path.is_file()} == before
    monkeypatch.undo()
    assert command(*args, "--max-steps", 2, "--resume").code == 0
    assert steps(out) == [1, 2]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["text_smal"], "did you mean text_small"),
        ([], "name a preset, a YAML file or a run first"),
        (["--out", "x"], "name a preset, a YAML file or a run first"),
        (["text_small"], "where should the run go? Add --out, for example --out runs/text_small"),
        (["text_small", "--out", "x", *TINY], "needs training data: --data STORE"),
        (["text_small", "--out", "x", "--data", "nowhere", *TINY], "nowhere: there is no store"),
        (["copy_tiny", "--out", "x", "--data", "STORE"], "makes its own data (the copy task): leave --data out"),
        (["text_small", "--out", "x", "--data", "STORE", "--device", "abacus", *SMALL_MODEL], "device 'abacus'"),
        (
            ["text_small", "--out", "x", "--model.num-latents", "5000"],
            "num_latents=5000 must lie in 1..max_seq_len=4096",
        ),
        (["text_small", "--out", "x", "--model.heads", "3"], "heads=3 must divide the 320 channels"),
        (["text_small", "--out", "x", "--lr", "1"], "--optim.lr"),
        (["text_small", "--out", "x", "--max-steps", "many"], "--max-steps"),
        (["text_small", "--out", "x", "--init", "nowhere", "--data", "STORE", *TINY], "nowhere does not exist"),
        (
            ["music_small", "--out", "x", "--data", "STORE", *TINY],
            "made by `perceivers prepare music DIR --out STORE`",
        ),
        (["imagenet64", "--out", "x", "--data", "STORE", *SMALL_MODEL], "positions have 3 axes"),
    ],
)
def test_mistakes(
    command: Command, text_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = command("train", *(str(text_store) if arg == "STORE" else arg for arg in args))
    assert done.code == 2
    assert said in done.err
    assert not Path("x").exists()


def test_store_of_another_vocabulary(command: Command, music_store: Path, tmp_path: Path) -> None:
    done = command("train", "text_small", "--data", music_store, "--out", tmp_path / "run", *TINY)
    assert done.code == 2
    assert "the model knows 259: choose a preset for this kind of data, or --model.vocab-size 391" in done.err


def test_run_that_is_there(command: Command, text_run: Path, text_store: Path) -> None:
    done = command("train", "text_small", "--data", text_store, "--out", text_run, *TINY)
    assert done.code == 2
    assert "add --resume to go on, or choose another --out" in done.err


def test_more_memory_than_there_is(command: Command, tmp_path: Path) -> None:
    done = command("train", "copy_tiny", "--out", tmp_path / "run", "--model.dim", 65536, "--device", "cpu")
    assert done.code == 2
    assert "training would take about" in done.err
    assert "lower --model.num-latents" in done.err


class TestTooShort:
    """A run that taught next to nothing ends with a warning, and not with what to do next."""

    def test_inside_its_warm_up(self, command: Command, text_store: Path, tmp_path: Path) -> None:
        args = ["train", "text_small", "--data", text_store, "--out", tmp_path / "run", *TINY, "--log-every", 1]
        done = command(*args, "--max-steps", 2, "--optim.warmup-steps", 7)
        assert done.code == 0
        assert "warning: the run ended inside its warm-up, after 2 steps" in done.err
        assert f"train longer (perceivers train {tmp_path}/run --resume --max-steps 70)" in done.err
        assert "model.safetensors" in done.out
        assert "next:" not in done.out

    def test_by_the_clock(self, command: Command, text_store: Path, tmp_path: Path) -> None:
        args = ["train", "text_small", "--data", text_store, "--out", tmp_path / "run", *TINY]
        done = command(*args, "--max-steps", 100, "--max-minutes", 1e-6, "--log-every", 50)
        assert done.code == 0
        assert "ended inside its warm-up, after 1 step, so the model has learned next to nothing" in done.err
        assert "--resume --max-minutes " in done.err

    def test_before_a_line_of_its_log(self, command: Command, text_store: Path, tmp_path: Path) -> None:
        args = ["train", "text_small", "--data", text_store, "--out", tmp_path / "run", *TINY]
        done = command(*args, "--max-steps", 3, "--optim.warmup-steps", 0, "--log-every", 4)
        assert "warning: the run made 3 steps, fewer than one line of its log tells of" in done.err
        assert "next:" not in done.out
        long = command(*args, "--max-steps", 4, "--optim.warmup-steps", 0, "--log-every", 4, "--resume")
        assert "warning" not in long.err
        assert "next:" in long.out


def test_several_processes_write_no_samples(
    command: Command, text_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said by the first one of them; a preset that samples is no mistake."""
    monkeypatch.setattr(loop, "train", lambda *args, **kwargs: SimpleNamespace(place=SimpleNamespace(rank=1)))
    args = ["train", "text_small", "--data", text_store, "--out", tmp_path / "run", *TINY, "--parallel.dp", 2]
    said = "no samples are written on the way, as 2 processes share the model"
    monkeypatch.setenv("RANK", "0")
    done = command(*args, "--data.batch-size", 2, "--sample-every", 1)
    assert (done.code, said in done.err) == (0, True)
    monkeypatch.setenv("RANK", "1")
    assert said not in command(*args, "--data.batch-size", 2, "--sample-every", 1).err
