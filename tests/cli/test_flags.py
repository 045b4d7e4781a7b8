from pathlib import Path

import pytest
import yaml

from perceivers.cli.flags import read_config, read_settings, to_flags
from perceivers.cli.train import parse_train
from perceivers.presets import PRESETS, preset
from perceivers.records import to_dict

from .conftest import Command


def test_flags_of_nested_values() -> None:
    values = {"max_steps": 9, "optim": {"lr": "3e-4", "betas": [0.9, 0.99]}, "model": {"query_offset": True}}
    assert to_flags(values) == [
        "--max_steps", "9", "--optim.lr", "3e-4", "--optim.betas", "0.9", "0.99", "--model.query_offset", "True"
    ]  # fmt: skip


@pytest.mark.parametrize("name", [name for name in PRESETS if preset(name).model.kind != "hip"])
def test_flags_say_all_that_a_config_says(name: str) -> None:
    """Even on top of another preset, if its parts are of the same kinds.

    The data sets of a Hierarchical Perceiver are records in a row, for which there are no flags: a file holds them.
    """
    config = preset(name)
    other = next(p() for p in PRESETS.values() if same_kinds(p(), config))
    assert parse_train(other, to_flags(to_dict(config)), prog="train")[1] == config


def same_kinds(a, b) -> bool:
    return kinds(to_dict(a)) == kinds(to_dict(b))


def kinds(values: dict, path: str = "") -> set[tuple[str, str]]:
    """The kinds of all parts, each with where it stands."""
    inner = [kinds(value, f"{path}.{name}") for name, value in values.items() if isinstance(value, dict)]
    return {(path, str(values.get("kind")))}.union(*inner)


def test_file_that_starts_from_a_preset(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("preset: text_small\noptim: {lr: 3e-4}\nmodel:\n  num_latents: 64\nmax_minutes: null\n")
    config, flags = read_settings(str(path))
    assert config == preset("text_small")
    changed = parse_train(config, [*flags, "--model.num-latents", "32"], prog="train")[1]
    assert changed.optim.lr == 3e-4  # a string to YAML
    assert changed.model.num_latents == 32  # the command line wins


def test_file_with_a_whole_configuration(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(to_dict(preset("copy_32"))))
    assert read_settings(str(path)) == (preset("copy_32"), [])
    assert read_settings(str(tmp_path)) == (preset("copy_32"), [])


def test_preset_goes_before_a_directory_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("copy_tiny").mkdir()
    assert read_settings("copy_tiny") == (preset("copy_tiny"), [])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("preset: music_smal", "did you mean music_small"),
        ("model: [", "can't be read as YAML"),
        ("- 1", "must hold names and values"),
        ("", "must hold names and values"),
        ("max_steps: 9", "neither a line `preset: NAME` nor a whole configuration"),
        (
            "model: {kind: ecp, dimm: 3}\ndata: {}",
            "mine.yaml: model.dimm: no such field of ECPConfig; did you mean 'dim'",
        ),
        ("model: {kind: ecp, dim: 3.5}\ndata: {}", "mine.yaml: model.dim: got 3.5, needs int"),
    ],
)
def test_file_that_is_no_configuration(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=said.replace("`", ".")):
        read_settings(str(path))


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"mine\.yaml does not exist"):
        read_settings(str(tmp_path / "mine.yaml"))
    with pytest.raises(FileNotFoundError, match=r"config\.yaml does not exist"):
        read_config(tmp_path / "config.yaml")


def twice(write: str) -> str:
    """Aliases of aliases, 60 times doubled."""
    return "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {write.format(n - 1)}\n" for n in range(1, 61))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (twice("[*a{0}, *a{0}]"), "its aliases stand for more than 10,000 values"),
        (twice("{{<<: [*a{0}, *a{0}]}}"), "its aliases stand for more than 10,000 values"),
        (twice("{{p: *a{0}, q: *a{0}}}"), "its aliases stand for more than 10,000 values"),
        ("seed: &a [*a]", "an alias stands inside of what it stands for"),
        ("seed: " + "[" * 5000, "recursion"),
        ("seed: 2001-99-99", "month must be in 1..12"),
    ],
)
def test_small_texts_that_stand_for_much_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("preset: bach_demo\n" + text)
    with pytest.raises(ValueError, match=f"mine.yaml can't be read as YAML: .*{message}"):
        read_settings(str(path))


def test_aliases_may_be_used(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("preset: bach_demo\nmodel: {dim: &d 64, input_dim: *d}\n")
    assert read_settings(str(tmp_path / "mine.yaml"))[1] == ["--model.dim", "64", "--model.input_dim", "64"]


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize(
    "args",
    [
        ["train", "copy_tiny", "--out", "run", "--max-minutes"],
        ["train", "copy_tiny", "--out", "run", "--optim.max-grad-norm"],
        ["train", "copy_tiny", "--out", "run", "--optim.betas", "0.9"],
        ["demo", "--out", "run", "--minutes"],
        ["generate", "run", "--temperature"],
        ["generate", "run", "--prompt-seconds"],
        ["convert", "huggingface", "source", "run", "--flow-scale"],
        ["show", "copy_tiny", "--gpus", "2", "--memory"],
    ],
)
def test_numbers_that_are_none(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], value: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = command(*args, value)
    assert done.code == 2
    assert len(done.err.strip().splitlines()) == 1 or "Value error" in done.err
    assert value in done.err
    assert not any(tmp_path.iterdir())


def test_a_file_of_settings_with_numbers_that_are_none(command: Command, tmp_path: Path) -> None:
    for text in ("preset: copy_tiny\nmax_minutes: .nan\n", "preset: copy_tiny\noptim:\n  lr: .inf\n"):
        (tmp_path / "a.yaml").write_text(text)
        done = command("train", tmp_path / "a.yaml", "--out", tmp_path / "run")
        assert done.code == 2
        assert "must be a finite number" in done.err
