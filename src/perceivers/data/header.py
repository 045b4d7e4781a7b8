"""header.json: what a token store says of itself."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

__all__ = ["FileRecord", "SplitRecord", "StoreHeader", "damaged"]

FORMAT = "perceivers token store"
VERSION = 1


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """What a file of the store must be."""

    num_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class SplitRecord:
    """Counts and files of one split; `files` maps a file's name to its record."""

    documents: int
    tokens: int
    files: dict[str, FileRecord]


@dataclass(frozen=True, kw_only=True)
class StoreHeader:
    """What a store holds."""

    tokenizer: str
    """What made the ids: "performance", "bytes", "copy", or "ids" for a user's own."""
    vocab_size: int
    """Every id is below this."""
    dtype: str
    """How ids are stored: "uint16" or "uint32", little-endian."""
    splits: dict[str, SplitRecord]
    source: str | None = None
    """What the documents came from, for people."""
    command: str | None = None
    """The command that wrote the store, for people."""

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change with anything a model would notice: ids, documents, tokenizer, splits."""
        content = {key: value for key, value in asdict(self).items() if key not in ("source", "command")}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def to_json(self) -> str:
        """The text of header.json."""
        stamp = {"format": FORMAT, "version": VERSION, "fingerprint": self.fingerprint}
        return json.dumps(stamp | asdict(self), indent=2) + "\n"

    @classmethod
    def read(cls, path: Path) -> "StoreHeader":
        """Read and check header.json.

        Raises:
            ValueError: It is not a token store's header, from a newer version, or damaged.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:  # covers bad JSON and bad UTF-8
            raise damaged(path, f"not readable as JSON ({error})") from error
        if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
            raise ValueError(f"{path}: not the header of a token store; make a store with `perceivers prepare`")
        if (version := values.pop("version", None)) != VERSION:
            raise ValueError(
                f"{path}: format version {version!r}, this program reads version {VERSION}; "
                "upgrade perceivers, or prepare the store again"
            )
        fingerprint = values.pop("fingerprint", None)
        try:
            splits = {name: _split_record(record) for name, record in values.pop("splits").items()}
            header = cls(splits=splits, **values)
        except (KeyError, TypeError, AttributeError) as error:
            raise damaged(path, f"a field is missing or wrong ({error})") from error
        if header.fingerprint != fingerprint:
            raise damaged(path, "its content does not match its own fingerprint")
        return header


def _split_record(values: dict[str, Any]) -> SplitRecord:
    files = {name: FileRecord(**record) for name, record in values.pop("files").items()}
    return SplitRecord(files=files, **values)


def damaged(path: Path, what: str) -> ValueError:
    """The error for a file that is not as it was written."""
    remedy = "copy the store again, or prepare it again with `perceivers prepare`"
    return ValueError(f"{path}: damaged: {what}; {remedy}")
