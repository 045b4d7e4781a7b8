"""data.json: what data a run was trained on, so that later commands find it."""

import json
from pathlib import Path
from typing import Any

from perceivers.data.picture_store import PictureStore
from perceivers.records import parse_json
from perceivers.train.data import Store, open_store
from perceivers.writing import write_text

DATA = "data.json"


def record_data(run: Path, store: Store) -> None:
    """Note in `run` where its data is, and what; of a store in memory nothing could be found again."""
    if store.path is None:
        return
    record = {"path": str(store.path.resolve()), "fingerprint": store.fingerprint, **_content(store)}
    write_text(run / DATA, json.dumps(record, indent=1) + "\n")


def data_record(run: Path) -> dict[str, Any] | None:
    """What `record_data` noted; None for a run on data of its own making.

    Raises:
        ValueError: The file is damaged.
    """
    path = run / DATA
    if not path.exists():
        return None
    try:
        record = parse_json(path.read_text(encoding="utf-8"))
        return {key: record[key] for key in ("path", "fingerprint", "tokenizer", "splits")} | record
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}): give the data with --data") from error


def _content(store: Store) -> dict[str, Any]:
    if isinstance(store, PictureStore):
        splits = {name: {"pictures": split.pictures} for name, split in store.header.splits.items()}
        return {"tokenizer": store.tokenizer, "shape": store.shape, "classes": store.classes, "splits": splits}
    header = store.header
    splits = {name: {"documents": split.documents, "tokens": split.tokens} for name, split in header.splits.items()}
    return {"tokenizer": header.tokenizer, "vocab_size": header.vocab_size, "splits": splits}


def recorded_store(run: Path) -> Store:
    """Open the data that `run` was trained on.

    Raises:
        FileNotFoundError: The run has none on record, or it is gone.
        ValueError: It has changed since.
    """
    record = data_record(run)
    if record is None:
        raise FileNotFoundError(f"{run} has no {DATA}, which would say what it was trained on: give --data STORE")
    if not Path(record["path"]).exists():
        raise FileNotFoundError(
            f"{record['path']}, which {run} was trained on, is not there any more: say where it is with --data"
        )
    store = open_store(record["path"])
    if store.fingerprint != record["fingerprint"]:
        raise ValueError(
            f"the data in {record['path']} has changed since {run} was trained on it (fingerprint "
            f"{record['fingerprint']}, now {store.fingerprint}): put the old store back, or name one with --data"
        )
    return store
