import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors.torch import load_file, save_file
from torch import nn

from perceivers import hub
from perceivers.hub import (
    find_model,
    load_weights,
    read_model,
    read_tensors,
    replace_file,
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
    "text", ["{", "[]", "7", '{"model_type": "gpt2"}', '{"tokenizer": "ids"}', '{"model": {}}', "\udcff"]
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


def test_a_file_stays_when_its_writer_fails(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def write(partial: Path) -> None:
        partial.write_text("half of the n")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        replace_file(path, write)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("file", "old")]


def test_a_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    replace_file(path, lambda partial: partial.write_text("new"))
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("file", "new")]


def test_trouble_with_the_file_system_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no directory"):
        write_tensors({"a": torch.zeros(3)}, tmp_path / "no directory" / "file")


def test_tensors_of_any_layout_are_written(tmp_path: Path) -> None:
    wanted = torch.randn(3, 5, requires_grad=True).T
    write_tensors({"a": wanted}, tmp_path / "file")
    assert torch.equal(read_tensors(tmp_path / "file")["a"], wanted)


def test_hub_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*args: Any, **kwargs: Any) -> str:
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(hub, "snapshot_download", download)
    with pytest.raises(
        FileNotFoundError, match=r"runs/a is no directory here.*LocalEntryNotFoundError.*or pytorch_model"
    ):
        find_model("runs/a")


def test_a_name_that_no_hub_knows() -> None:
    with pytest.raises(FileNotFoundError, match="a/b/c is no directory here, and the hub did not give it"):
        find_model("a/b/c")


def test_an_id_that_the_hub_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*args: Any, **kwargs: Any) -> str:
        raise RepositoryNotFoundError("404", response=SimpleNamespace(headers={}, request=None))  # pyright: ignore

    monkeypatch.setattr(hub, "snapshot_download", download)
    with pytest.raises(FileNotFoundError, match=r"owner/name is no directory here.*RepositoryNotFoundError"):
        find_model("owner/name")


def test_a_directory_is_found_without_the_hub(saved: Path) -> None:
    assert find_model(str(saved)) == saved


def test_a_model_from_the_hub(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def download(model_id: str, **options: Any) -> str:
        asked.update(options, id=model_id)
        return str(saved)

    monkeypatch.setattr(hub, "snapshot_download", download)
    assert find_model("owner/name", revision="v2", token="t") == saved
    assert (asked["id"], asked["revision"], asked["token"]) == ("owner/name", "v2", "t")
    assert asked["allow_patterns"] == ["config.json", "model.safetensors"]


def test_weights_of_old_are_fetched_where_there_are_no_others(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def download(model_id: str, **options: Any) -> str:
        asked.append(options["allow_patterns"])
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", download)
    assert find_model("owner/name") == tmp_path
    assert asked == [["config.json", "model.safetensors"], ["config.json", "pytorch_model.bin"]]


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
