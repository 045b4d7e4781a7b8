"""data.json: what data a run was trained on, so that later commands find it."""

import json
from pathlib import Path
from typing import Any

from perceivers.data.tokens import TokenStore
from perceivers.hub import replace_file

DATA = "data.json"


def record_data(run: Path, store: TokenStore) -> None:
    """Note in `run` where its data is, and what."""
    record = {
        "path": str(store.path.resolve()),
        "fingerprint": store.fingerprint,
        "tokenizer": store.header.tokenizer,
        "vocab_size": store.header.vocab_size,
        "splits": {
            name: {"documents": split.documents, "tokens": split.tokens} for name, split in store.header.splits.items()
        },
    }
    text = json.dumps(record, indent=1) + "\n"
    replace_file(run / DATA, lambda path: path.write_text(text, encoding="utf-8"))


def data_record(run: Path) -> dict[str, Any] | None:
    """What `record_data` noted; None for a run on data of its own making.

    Raises:
        ValueError: The file is damaged.
    """
    path = run / DATA
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return {key: record[key] for key in ("path", "fingerprint", "tokenizer", "vocab_size", "splits")}
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}): give the data with --data") from error


def recorded_store(run: Path) -> TokenStore:
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
    store = TokenStore.open(record["path"])
    if store.fingerprint != record["fingerprint"]:
        raise ValueError(
            f"the data in {record['path']} has changed since {run} was trained on it (fingerprint "
            f"{record['fingerprint']}, now {store.fingerprint}): put the old store back, or name one with --data"
        )
    return store
