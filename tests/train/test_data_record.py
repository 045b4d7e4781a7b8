import json
from pathlib import Path

import numpy as np
import pytest

from perceivers.data.tokens import StoreWriter, TokenStore
from perceivers.train.data_record import data_record, record_data, recorded_store


def make_store(path: Path, seed: int = 0) -> TokenStore:
    ids = np.random.default_rng(seed).integers(256, size=11)
    with StoreWriter(path, tokenizer="bytes", vocab_size=256, overwrite=True) as writer:
        writer.append("train", ids, name="a")
        writer.append("test", ids[:7], name="b")
    return TokenStore.open(path)


def test_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = make_store(Path("store"))
    record_data(tmp_path, store)
    monkeypatch.chdir("/")
    assert recorded_store(tmp_path).fingerprint == store.fingerprint
    record = data_record(tmp_path)
    assert record is not None
    assert record["splits"] == {"train": {"documents": 1, "tokens": 11}, "test": {"documents": 1, "tokens": 7}}


def test_nothing_on_record(tmp_path: Path) -> None:
    assert data_record(tmp_path) is None
    with pytest.raises(FileNotFoundError, match=r"has no data\.json, .*: give --data STORE"):
        recorded_store(tmp_path)


def test_moved(tmp_path: Path) -> None:
    record_data(tmp_path, make_store(tmp_path / "store"))
    (tmp_path / "store").rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match="is not there any more: say where it is with --data"):
        recorded_store(tmp_path)


def test_changed(tmp_path: Path) -> None:
    record_data(tmp_path, make_store(tmp_path / "store"))
    make_store(tmp_path / "store", seed=1)
    with pytest.raises(ValueError, match=r"has changed since .* was trained on it"):
        recorded_store(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", json.dumps({"path": "x"})])
def test_damaged(tmp_path: Path, text: str) -> None:
    (tmp_path / "data.json").write_text(text)
    with pytest.raises(ValueError, match=r"data\.json is damaged .*: give the data with --data"):
        data_record(tmp_path)
