import io
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from perceivers.data.picture_files import PICTURE_ENDINGS, brightness, files_as_pictures, fitted
from perceivers.data.sources import find_documents

Image = pytest.importorskip("PIL.Image")


def save(path: Path, pixels: np.ndarray | None = None, **how) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8) if pixels is None else pixels
    Image.fromarray(pixels).save(path, **how)
    return path


def look(*sources: Path):
    return files_as_pictures(find_documents(sources, PICTURE_ENDINGS)[0])


def labels(*sources: Path) -> dict:
    return {picture.name: (picture.split, picture.label) for picture in look(*sources)[0]}


def test_pixels_of_all_kinds_of_files(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    save(tmp_path / "a.png", pixels)
    save(tmp_path / "b.BMP", pixels)
    save(tmp_path / "c.png", pixels[..., 0])
    Image.fromarray(pixels).convert("RGBA").save(tmp_path / "d.webp", lossless=True)
    Image.fromarray(pixels).quantize(35).save(tmp_path / "e.gif")
    save(tmp_path / "f.jpg", np.full((5, 7, 3), 77, dtype=np.uint8), quality=95)
    pictures, skipped = look(tmp_path)
    assert skipped == []
    assert [picture.size for picture in pictures] == [(5, 7)] * 6
    assert [picture.grey for picture in pictures] == [False, False, True, False, False, False]
    for picture, expected in zip(pictures, (pixels, pixels, pixels[..., :1], pixels), strict=False):
        assert np.array_equal(picture.read(), expected)
    assert pictures[4].read().shape == (5, 7, 3)
    assert np.abs(pictures[5].read().astype(int) - 77).max() <= 1


def test_a_photo_that_the_camera_held_upright(tmp_path: Path) -> None:
    pixels = np.zeros((8, 16, 3), dtype=np.uint8)
    pixels[:, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    save(tmp_path / "a.png", pixels, exif=exif)
    (picture,), _ = look(tmp_path)
    assert picture.size == (16, 8)
    shown = picture.read()
    assert shown.shape == (16, 8, 3)
    assert shown[:8].min() == 255
    assert shown[8:].max() == 0


def test_what_cannot_be_read_is_skipped_with_a_reason(tmp_path: Path) -> None:
    good = save(tmp_path / "good.png").read_bytes()
    (tmp_path / "text.jpg").write_text("not a picture")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "short.png").write_bytes(good[: len(good) // 2])
    Image.fromarray(np.zeros((5, 7), dtype=np.uint16)).save(tmp_path / "deep.png")
    pictures, skipped = look(tmp_path)
    assert [picture.name for picture in pictures] == ["good.png", "short.png"]
    reasons = dict(skipped)
    assert reasons.keys() == {"text.jpg", "empty.png", "deep.png"}
    assert reasons["text.jpg"].startswith("cannot be read as a picture (")
    assert "convert it to 8 bits" in reasons["deep.png"]
    with pytest.raises(ValueError, match=r"cannot be read as a picture \("):
        pictures[1].read()


def test_pictures_of_too_many_pixels_are_told_before_they_are_decoded(tmp_path: Path) -> None:
    save(tmp_path / "good.png")
    Image.new("L", (1009, 1013)).save(tmp_path / "many.png")
    documents, _ = find_documents([tmp_path], PICTURE_ENDINGS, unpacked_mb=11)
    pictures, skipped = files_as_pictures(documents)
    assert [picture.name for picture in pictures] == ["good.png"]
    assert skipped == [("many.png", "it unpacks to 12 MB, more than 11; --unpacked-mb 12 reads it")]
    documents, _ = find_documents([tmp_path], PICTURE_ENDINGS, unpacked_mb=12)
    assert files_as_pictures(documents)[1] == []


def test_classes_are_folders(tmp_path: Path) -> None:
    for name in ("pets/cat/1.png", "pets/dog/1.png", "pets/dog/old/2.png"):
        save(tmp_path / name)
    assert labels(tmp_path) == {
        "pets/cat/1.png": (None, "cat"),
        "pets/dog/1.png": (None, "dog"),
        "pets/dog/old/2.png": (None, "dog"),
    }
    assert {label for _, label in labels(tmp_path / "pets/cat", tmp_path / "pets/dog").values()} == {"cat", "dog"}
    save(tmp_path / "pets" / "3.png")
    assert {label for _, label in labels(tmp_path).values()} == {None}


def test_classes_below_splits(tmp_path: Path) -> None:
    for name in ("train/cat/1.png", "train/dog/1.png", "val/dog/2.png"):
        save(tmp_path / name)
    expected = {
        "train/cat/1.png": ("train", "cat"),
        "train/dog/1.png": ("train", "dog"),
        "val/dog/2.png": ("validation", "dog"),
    }
    assert labels(tmp_path) == expected
    assert labels(tmp_path / "train", tmp_path / "val") == expected
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for name in expected:
            archive.write(tmp_path / name, f"set/{name}")
    assert labels(tmp_path / "all.zip") == {f"set/{name}": which for name, which in expected.items()}


def test_photos_without_classes(tmp_path: Path) -> None:
    for name in ("train/1.png", "test/2.png", "test/3.png"):
        save(tmp_path / name)
    assert {label for _, label in labels(tmp_path).values()} == {None}
    assert {label for _, label in labels(tmp_path / "test").values()} == {None}


def test_brightness_is_that_of_pillow() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (53, 59, 3), dtype=np.uint8)
    assert np.array_equal(brightness(pixels)[..., 0], np.asarray(Image.fromarray(pixels).convert("L")))
    assert np.array_equal(fitted(pixels, (53, 59), channels=1), brightness(pixels))


def test_fitted_covers_and_takes_the_middle() -> None:
    pixels = np.zeros((10, 30, 3), dtype=np.uint8)
    pixels[:, 10:20] = 200
    middle = fitted(pixels, (5, 5), channels=3)
    assert middle.shape == (5, 5, 3)
    assert middle[:, 1:4].min() > 180
    tall = fitted(pixels.transpose(1, 0, 2)[..., :1], (7, 7), channels=3)
    assert tall.shape == (7, 7, 3)
    assert np.array_equal(tall[..., 0], tall[..., 2])
    assert fitted(pixels, (10, 30), channels=3) is pixels
    assert fitted(pixels[:3, :4], (11, 13), channels=3).shape == (11, 13, 3)


def test_reading_what_vanished(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png")
    (picture,), _ = look(tmp_path)
    path.write_bytes(io.BytesIO(b"other").getvalue())
    with pytest.raises(ValueError, match="cannot be read as a picture"):
        picture.read()


@pytest.mark.parametrize("ending", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_picture_is_turned_once_whoever_turns_it(orientation: int, ending: str, tmp_path: Path) -> None:
    """Pillow turns TIFF by itself and the others on request; size and pixels agree."""
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:8, :8] = 255  # which corner it is in says how the picture is turned
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / f"a.{ending}", exif=exif)
    (picture,), skipped = files_as_pictures(find_documents([tmp_path], PICTURE_ENDINGS)[0])
    assert skipped == []
    read = picture.read()
    assert picture.size == read.shape[:2] == ((16, 32) if orientation < 5 else (32, 16))
    row, column = {1: (4, 4), 3: (-5, -5), 6: (4, -5), 8: (-5, 4)}[orientation]
    assert read[row, column].min() > 200


def test_a_picture_whose_orientation_stands_behind_its_pixels(tmp_path: Path) -> None:
    """Where exiftool writes it."""
    Image.fromarray(np.zeros((16, 32), np.uint8)).save(tmp_path / "a.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    content = exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = len(content).to_bytes(4) + b"eXIf" + content + zlib.crc32(b"eXIf" + content).to_bytes(4)
    png = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(png[:-12] + chunk + png[-12:])
    (picture,), _ = files_as_pictures(find_documents([tmp_path], PICTURE_ENDINGS)[0])
    assert picture.size == picture.read().shape[:2] == (32, 16)
