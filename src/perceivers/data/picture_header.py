"""header.json of a picture store."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perceivers.data.header import FileRecord, damaged, fingerprint_of, header_text, read_header

__all__ = ["PictureHeader", "PictureSplitRecord"]

KIND, VERSION = "picture store", 1


@dataclass(frozen=True, kw_only=True)
class PictureSplitRecord:
    """Count and files of one split; `files` maps a file's name to its record."""

    pictures: int
    files: dict[str, FileRecord]


@dataclass(frozen=True, kw_only=True)
class PictureHeader:
    """What a store holds."""

    shape: tuple[int, int, int]
    """Rows, columns and channels of every picture."""
    classes: tuple[str, ...] | None
    """Names of the labels 0, 1, ...; None where there are no labels."""
    splits: dict[str, PictureSplitRecord]
    source: str | None = None
    """What the pictures came from, for people."""
    command: str | None = None
    """The command that wrote the store, for people."""

    @property
    def files(self) -> dict[str, FileRecord]:
        """The records of all files by name."""
        return {name: record for split in self.splits.values() for name, record in split.files.items()}

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change with anything a model would notice: pixels, labels, classes, splits."""
        return fingerprint_of(self)

    def to_json(self) -> str:
        """The text of header.json."""
        return header_text(self, kind=KIND, version=VERSION)

    @classmethod
    def read(cls, path: Path) -> "PictureHeader":
        """Read and check header.json.

        Raises:
            ValueError: It is not a picture store's header, from a newer version, or damaged.
        """
        values, fingerprint = read_header(path, kind=KIND, version=VERSION)
        try:
            splits = {name: _split_record(record) for name, record in values.pop("splits").items()}
            rows, columns, channels = values.pop("shape")
            classes = values.pop("classes")
            header = cls(
                shape=(rows, columns, channels),
                classes=None if classes is None else tuple(classes),
                splits=splits,
                **values,
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise damaged(path, f"a field is missing or wrong ({error})") from error
        if header.fingerprint != fingerprint:
            raise damaged(path, "its content does not match its own fingerprint")
        return header


def _split_record(values: dict[str, Any]) -> PictureSplitRecord:
    files = {name: FileRecord(**record) for name, record in values.pop("files").items()}
    return PictureSplitRecord(files=files, **values)
