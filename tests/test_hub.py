import json
import os
import re
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors.torch import load_file, save_file
from torch import nn

from perceivers import hub
from perceivers.hub import (
    checksum,
    find_model,
    load_weights,
    read_model,
    read_tensors,
    upload_model,
    write_model,
    write_tensors,
)
from perceivers.models.build import build
from perceivers.models.perceiver_ar_config import (
    InputQueries,
    LearnedQueries,
    MLPQueries,
    PerceiverARConfig,
    RotaryPositions,
    TablePositions,
)

from .faults import faulty

TINY: dict[str, Any] = {
    "vocab_size": 13,
    "max_seq_len": 11,
    "num_latents": 5,
    "dim": 14,
    "depth": 2,
    "heads": 7,
    "cross_heads": 2,
    "zero_logits": False,
}

CONFIGS = {
    "rotary": PerceiverARConfig(**TINY, positions=RotaryPositions(channel_share=1.0)),
    "table": PerceiverARConfig(**TINY, positions=TablePositions()),
    "learned table": PerceiverARConfig(**TINY, positions=TablePositions(table="random", learned=True)),
    "learned queries": PerceiverARConfig(**TINY, queries=LearnedQueries()),
    "MLP queries": PerceiverARConfig(**TINY, queries=MLPQueries(layers=3)),
    "two latents a position": PerceiverARConfig(**TINY, queries=InputQueries(), latents_per_position=2),
    "two cross-attends": PerceiverARConfig(**TINY, extra_cross_attends=(0,), input_dim=10),
}


def fresh(config: PerceiverARConfig = CONFIGS["rotary"], *, seed: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return build(config)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    write_model(fresh().state_dict(), CONFIGS["rotary"], "ids", tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("config", CONFIGS.values(), ids=list(CONFIGS))
def test_a_saved_model_gives_the_same_logits(config: PerceiverARConfig, tmp_path: Path) -> None:
    before = fresh(config).eval()
    write_model(before.state_dict(), config, "bytes", tmp_path / "a" / "b")
    after, tokenizer = read_model(tmp_path / "a" / "b")
    assert (after.config, tokenizer) == (config, "bytes")
    after.eval()
    tokens, positions = torch.randint(13, (2, 7)), torch.arange(1, 8).expand(2, -1)[..., None]
    with torch.no_grad():
        assert torch.equal(before(tokens, positions=positions), after(tokens, positions=positions))


def test_only_two_files_are_written(saved: Path) -> None:
    assert sorted(file.name for file in saved.iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{saved} has no {name}: it holds no saved model"):
        read_model(saved)


@pytest.mark.parametrize(
    "text",
    [
        *("{", "[]", "7", '{"model_type": "gpt2"}', '{"tokenizer": "ids"}', '{"model": {}}', "\udcff"),
        *('{"tokenizer": 5, "model": {}}', '{"tokenizer": null, "model": {}}', "[" * 100_000),
    ],
)
def test_a_config_that_is_none_is_refused(saved: Path, text: str) -> None:
    (saved / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=r"config.json is not a model's config"):
        read_model(saved)


def test_an_unknown_field_is_named_with_its_file(saved: Path) -> None:
    values = json.loads((saved / "config.json").read_text())
    values["model"]["num_latent"] = values["model"].pop("num_latents")
    (saved / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"config\.json: num_latent: no such field.*did you mean 'num_latents'"):
        read_model(saved)


def test_cut_off_weights_are_damaged(saved: Path) -> None:
    weights = saved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        read_model(saved)


def test_weights_of_another_model_are_refused(saved: Path) -> None:
    values = json.loads((saved / "config.json").read_text())
    values["model"]["depth"] = 1
    (saved / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"model\.safetensors does not fit the model: unknown layers\.1\..*more$"):
        read_model(saved)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("dim", 7 * 2**12, r"does not fit the model: .* has shape \[14\], the model \[28672\]"),
        ("dim", 7 * 2**40, "does not fit the model: "),
        ("vocab_size", 2**40, r"has shape \[13\], the model \[1099511627776\]"),
        ("depth", 10**9, "the config describes a model of far more"),
    ],
)
def test_a_config_of_a_far_larger_model_takes_no_memory(
    saved: Path, monkeypatch: pytest.MonkeyPatch, field: str, value: int, message: str
) -> None:
    values = json.loads((saved / "config.json").read_text())
    values["model"][field] = value
    (saved / "config.json").write_text(json.dumps(values))
    devices = []
    monkeypatch.setattr(hub, "build", lambda config: devices.append(torch.get_default_device().type) or build(config))
    with pytest.raises(ValueError, match=message):
        read_model(saved)
    assert devices == ["meta"]


def test_misfits_are_listed() -> None:
    model = nn.Linear(3, 2)
    tensors = {"weight": torch.zeros(2, 5), "scale": torch.zeros(1)}
    expected = "here does not fit the model: missing bias; unknown scale; weight has shape [2, 5], the model [2, 3]"
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        load_weights(model, tensors, source="here")


def test_nothing_is_loaded_if_a_name_is_wrong() -> None:
    model = nn.Linear(3, 2)
    before = model.weight.clone()
    with pytest.raises(ValueError, match="missing bias"):
        load_weights(model, {"weight": torch.zeros(2, 3)}, source="here")
    assert torch.equal(model.weight, before)


@pytest.mark.parametrize("dies", [False, True])
def test_the_old_model_or_the_new_one_stands(tmp_path: Path, dies: bool) -> None:
    """Of another shape, so that a config beside the other's weights would not open."""
    configs = {depth: replace(CONFIGS["rotary"], depth=depth) for depth in (1, 2, 3)}

    def write(depth: int) -> None:
        write_model(fresh(configs[depth], seed=depth).state_dict(), configs[depth], "ids", tmp_path / "model")

    at, came = 0, True
    while came:
        write(1)
        came = faulty(lambda: write(2), at, dies=dies)
        model, _ = read_model(tmp_path / "model")
        assert isinstance(model.config, PerceiverARConfig)
        depth = model.config.depth
        assert depth in ((1, 2) if came else (2,))
        expected = fresh(configs[depth], seed=depth).state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
        write(3)
        assert sorted(os.listdir(tmp_path / "model")) == ["config.json", "model.safetensors"]
        at += 1
    assert at > 5


# Checksums


TENSORS = {
    "weight": torch.randn(5, 3, generator=torch.Generator().manual_seed(0)),
    "half": torch.ones(7).bfloat16(),
    "steps": torch.tensor(3),
    "none": torch.zeros(0, 3),
}


def test_a_file_says_what_it_was(tmp_path: Path) -> None:
    write_tensors(TENSORS, tmp_path / "file")
    for name, value in read_tensors(tmp_path / "file").items():
        assert torch.equal(value, TENSORS[name])
        assert value.dtype == TENSORS[name].dtype


def test_the_same_tensors_are_the_same_file(tmp_path: Path) -> None:
    contents = set()
    for _ in range(20):
        write_tensors(TENSORS, tmp_path / "file")
        contents.add((tmp_path / "file").read_bytes())
    assert len(contents) == 1


def test_any_byte_that_is_another_is_found(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_tensors(TENSORS, path)
    good = path.read_bytes()
    for place in range(len(good)):
        bad = bytearray(good)
        bad[place] ^= (1, 0x20, 0xFF)[place % 3]
        path.write_bytes(bad)
        try:
            found = read_tensors(path)
        except ValueError as error:
            assert f"{path} is damaged" in str(error)  # noqa: PT017
            continue
        # A space of the header's padding may become another sign that means nothing: then nothing is wrong.
        assert found.keys() == TENSORS.keys()
        assert all(torch.equal(found[name], TENSORS[name]) for name in found)
        assert good[place : place + 1] == b" "


def test_files_without_a_checksum_open(tmp_path: Path) -> None:
    for metadata in (None, {"format": "pt"}, {"format": "pt", "total_size": "60"}):
        save_file(TENSORS, tmp_path / "file", metadata)
        assert read_tensors(tmp_path / "file").keys() == TENSORS.keys()


def test_a_checksum_changes_with_names_shapes_and_types() -> None:
    zeros = torch.zeros(4)
    sums = {
        checksum(tensors)
        for tensors in (
            {"a": zeros},
            {"b": zeros},
            {"a": zeros.view(2, 2)},
            {"a": zeros.view(torch.int32)},
            {"a": zeros[:3]},
            {"a": -zeros},
            {},
        )
    }
    assert len(sums) == 7


def test_trouble_with_the_file_system_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no directory"):
        write_tensors({"a": torch.zeros(3)}, tmp_path / "no directory" / "file")


def test_tensors_of_any_layout_are_written(tmp_path: Path) -> None:
    wanted = torch.randn(3, 5, requires_grad=True).T
    write_tensors({"a": wanted}, tmp_path / "file")
    assert torch.equal(read_tensors(tmp_path / "file")["a"], wanted)


def hub_answers(monkeypatch: pytest.MonkeyPatch, answer: Exception | None) -> list[str]:
    """Let the hub know every model, or fail; what was asked for."""
    asked: list[str] = []

    class Api:
        def __init__(self, token: str | None) -> None:
            del token

        def model_info(self, model_id: str, **options: Any) -> None:
            asked.append(model_id)
            if answer is not None:
                raise answer

    monkeypatch.setattr(hub, "HfApi", Api)
    return asked


def nothing_cached(*args: Any, **options: Any) -> str:
    assert options["local_files_only"]
    raise LocalEntryNotFoundError("not cached")


def test_hub_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    hub_answers(monkeypatch, ConnectionError("no route"))
    monkeypatch.setattr(hub, "snapshot_download", nothing_cached)
    with pytest.raises(
        FileNotFoundError,
        match=r"^owner/a does not exist here, and the hub could not be asked \(ConnectionError\); without a network, ",
    ):
        find_model("owner/a")


def test_what_was_downloaded_earlier_needs_no_network(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub_answers(monkeypatch, ConnectionError("no route"))
    monkeypatch.setattr(hub, "snapshot_download", lambda name, *, local_files_only, **_: str(saved))
    assert find_model("owner/name") == saved


@pytest.fixture
def silent_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A hub that accepts connections and never answers."""
    monkeypatch.setattr(hub, "HUB_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr(hub, "HfApi", lambda token: HfApi(endpoint=address, token=token))
        yield


def test_a_hub_that_never_answers(silent_hub: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "snapshot_download", nothing_cached)
    with pytest.raises(FileNotFoundError, match=r"does not exist here, and the hub (did not|could not be asked)"):
        find_model("owner/name")


def test_an_address_that_is_never_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """No time-out of a connection ends looking up a name."""
    stop = Event()

    class Api:
        def __init__(self, token: str | None) -> None:
            del token

        def model_info(self, *args: Any, **options: Any) -> None:
            stop.wait()

    monkeypatch.setattr(hub, "HfApi", Api)
    monkeypatch.setattr(hub, "HUB_SECONDS", 0.01)
    monkeypatch.setattr(hub, "snapshot_download", nothing_cached)
    with pytest.raises(FileNotFoundError, match=r"the hub did not answer within 0\.01 s"):
        find_model("owner/name")
    stop.set()


@pytest.mark.parametrize("name", ["a/b/c", "a", "./a", "../b", "/tmp/none", "a/", "here/a", "a b/c", "runs\\\\a", ""])
def test_a_path_is_no_id(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("here").mkdir()
    asked = hub_answers(monkeypatch, None)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        find_model(f"{name}/none" if name == "" else name)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        find_model(Path("owner/name"))
    assert asked == []


def test_the_nearest_run_is_named_first(tmp_path: Path, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    hub_answers(monkeypatch, ConnectionError("no route"))
    monkeypatch.setattr(hub, "snapshot_download", nothing_cached)
    saved.rename("modle")
    with pytest.raises(FileNotFoundError, match=r"^model does not exist; did you mean modle\?$"):
        find_model("model")
    with pytest.raises(FileNotFoundError, match=r"model/modle does not exist .*\); did you mean modle\?$"):
        find_model("model/modle")
    with pytest.raises(NotADirectoryError, match=r"^modle/config.json is a file: name its folder, modle$"):
        read_model(Path("modle/config.json"))


def test_an_id_that_the_hub_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    response: Any = SimpleNamespace(headers={}, request=None)
    hub_answers(monkeypatch, RepositoryNotFoundError("404", response=response))
    monkeypatch.setattr(hub, "snapshot_download", nothing_cached)
    with pytest.raises(FileNotFoundError, match=r"owner/name does not exist here, and the hub has no such model"):
        find_model("owner/name")


def test_a_directory_is_found_without_the_hub(saved: Path) -> None:
    assert find_model(str(saved)) == saved


def test_a_model_from_the_hub(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def download(model_id: str, **options: Any) -> str:
        asked.update(options, id=model_id)
        return str(saved)

    hub_answers(monkeypatch, None)
    monkeypatch.setattr(hub, "snapshot_download", download)
    assert find_model("owner/name", revision="v2", token="t") == saved
    assert (asked["id"], asked["revision"], asked["token"]) == ("owner/name", "v2", "t")
    assert asked["allow_patterns"] == ["config.json", "model.safetensors", "preprocessor_config.json"]


def test_weights_of_old_are_fetched_where_there_are_no_others(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def download(model_id: str, **options: Any) -> str:
        asked.append(options["allow_patterns"])
        return str(tmp_path)

    hub_answers(monkeypatch, None)
    monkeypatch.setattr(hub, "snapshot_download", download)
    assert find_model("owner/name") == tmp_path
    assert [patterns[1] for patterns in asked] == ["model.safetensors", "pytorch_model.bin"]
    assert all({"config.json", "preprocessor_config.json"} < set(patterns) for patterns in asked)


def test_upload(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    class Api:
        def __init__(self, token: str | None) -> None:
            calls.append(token)

        def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> None:
            calls.append((repo_id, private, exist_ok))

        def upload_folder(self, *, repo_id: str, folder_path: Path, allow_patterns: list[str]) -> Any:
            calls.append((folder_path, allow_patterns))
            return SimpleNamespace(commit_url=f"hub/{repo_id}/commit/1")

    monkeypatch.setattr(hub, "HfApi", Api)
    assert upload_model(saved, "owner/name", private=True) == "hub/owner/name/commit/1"
    assert calls == [None, ("owner/name", True, True), (saved, ["config.json", "model.safetensors"])]


def test_plain_safetensors_files(saved: Path) -> None:
    assert load_file(saved / "model.safetensors").keys() == fresh().state_dict().keys()
    save_file(
        {name: torch.zeros_like(value) for name, value in fresh().state_dict().items()}, saved / "model.safetensors"
    )
    assert not any(value.any() for value in read_model(saved)[0].state_dict().values())
