"""header.json: what a store says of itself, and whether its files are as it says."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from perceivers.key_use import KeyUse
from perceivers.nearest import STORE, suggestion
from perceivers.records import from_dict, parse_json

__all__ = [
    "FileRecord",
    "SplitRecord",
    "StoreHeader",
    "check_sizes",
    "check_sums",
    "damaged",
    "fingerprint_of",
    "header_text",
    "read_header",
    "store_kind",
]

KIND, VERSION = "token store", 1


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
    keys: KeyUse | None = None
    """Music: how the documents of "train" use the keys; None in stores of other kinds, or of before it was counted."""

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change with anything a model would notice: ids, documents, tokenizer, splits."""
        return fingerprint_of(self)

    def to_json(self) -> str:
        """The text of header.json."""
        return header_text(self, kind=KIND, version=VERSION)

    @classmethod
    def read(cls, path: Path) -> "StoreHeader":
        """Read and check header.json.

        Raises:
            ValueError: It is not a token store's header, from a newer version, or damaged.
        """
        values, fingerprint = read_header(path, kind=KIND, version=VERSION)
        try:
            splits = {name: _split_record(record) for name, record in values.pop("splits").items()}
            if (keys := values.pop("keys", None)) is not None:
                keys = from_dict(KeyUse, keys)
            header = cls(splits=splits, keys=keys, **values)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise damaged(path, f"a field is missing or wrong ({error})") from error
        if header.fingerprint != fingerprint:
            raise damaged(path, "its content does not match its own fingerprint")
        return header


def _split_record(values: dict[str, Any]) -> SplitRecord:
    files = {name: FileRecord(**record) for name, record in values.pop("files").items()}
    return SplitRecord(files=files, **values)


def fingerprint_of(header: Any) -> str:
    """16 hex digits that change with everything in a header, a dataclass, but what is for people or follows from it."""
    content = {key: value for key, value in asdict(header).items() if key not in ("source", "command", "keys")}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def header_text(header: Any, *, kind: str, version: int) -> str:
    """A header, a dataclass, as the text of header.json."""
    stamp = {"format": f"perceivers {kind}", "version": version, "fingerprint": fingerprint_of(header)}
    return json.dumps(stamp | asdict(header), indent=2) + "\n"


def store_kind(path: Path) -> str | None:
    """What kind of store a header.json is of; None where there is none, or none that can be read."""
    try:
        values = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return str(values.get("format")).removeprefix("perceivers ") if isinstance(values, dict) else None


def read_header(path: Path, *, kind: str, version: int) -> tuple[dict[str, Any], Any]:
    """The fields of a header.json, and the fingerprint that it names.

    Raises:
        ValueError: It is not the header of such a store, from a newer version, or no JSON.
    """
    try:
        values = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:  # covers bad JSON and bad UTF-8
        raise damaged(path, f"not readable as JSON ({error})") from error
    if not isinstance(values, dict) or values.pop("format", None) != f"perceivers {kind}":
        raise ValueError(f"{path}: not the header of a {kind}; make a store with `perceivers prepare`")
    if (found := values.pop("version", None)) != version:
        raise ValueError(
            f"{path}: format version {found!r}, this program reads version {version}; "
            "upgrade perceivers, or prepare the store again"
        )
    return values, values.pop("fingerprint", None)


def no_store(path: Path) -> FileNotFoundError | ValueError:
    """The error for a path at which no store is, with the nearest one."""
    remedy = suggestion(path, holds=STORE) or "; make one with `perceivers prepare`"
    if not path.exists():
        return FileNotFoundError(f"{path}: there is no store{remedy}")
    return ValueError(f"{path}: not a store, it has no {STORE}{remedy}")


def check_sizes(directory: Path, files: dict[str, FileRecord]) -> None:
    """Compare the sizes of a store's files with their records.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: One is longer or shorter.
    """
    for name, record in files.items():
        file = directory / name
        if not file.is_file():
            raise FileNotFoundError(f"{file}: missing; copy the whole store again, or prepare it again")
        if (size := file.stat().st_size) != record.num_bytes:
            raise damaged(file, f"{size:,} bytes where the header says {record.num_bytes:,}")


def check_sums(directory: Path, files: dict[str, FileRecord]) -> None:
    """Read every file and compare its checksum with its record.

    Raises:
        ValueError: A file differs; the message names it.
    """
    for name, record in files.items():
        with (directory / name).open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        if digest != record.sha256:
            raise damaged(directory / name, "its content does not match the checksum in the header")


def damaged(path: Path, what: str) -> ValueError:
    """The error for a file that is not as it was written."""
    remedy = "copy the store again, or prepare it again with `perceivers prepare`"
    return ValueError(f"{path}: damaged: {what}; {remedy}")
