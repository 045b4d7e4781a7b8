"""What a model says of users' own pictures: the class of each, or the motion between two."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import nn

from perceivers.arguments import checked_numbers
from perceivers.data.picture_arrays import ARRAY_ENDINGS, arrays_without_labels
from perceivers.data.picture_config import PictureConfig
from perceivers.data.picture_files import PICTURE_ENDINGS, PLAIN, Picture, files_as_pictures, fitted
from perceivers.data.picture_loader import picture_batches, scaled
from perceivers.data.picture_store import PictureSplit, PictureStore
from perceivers.data.sources import find_documents
from perceivers.data.splits import SPLITS, split_in
from perceivers.evaluate.pictures import class_logits
from perceivers.generate.decode import NOT_A_NUMBER
from perceivers.models.flow import tiled_flow
from perceivers.models.perceiver_config import PerceiverIOConfig
from perceivers.picture_reading import PictureReading

Pixels = UInt8[np.ndarray, "pictures rows columns channels"]


@torch.no_grad()
def class_probabilities(
    model: nn.Module, pixels: Pixels, config: PictureConfig
) -> Float[np.ndarray, "pictures classes"]:
    """What a model gives each class of each picture.

    Args:
        model: See `class_logits`.
        pixels: Of the shape that the model reads.
        config: As in training, of which only `permutation` matters here, and how many pictures are read at once.

    Raises:
        FloatingPointError: What the model predicts is not a number.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    parts = [
        class_logits(model, batch.to(device).pixels).double().softmax(-1).cpu().numpy()
        for batch in picture_batches(PictureSplit("given", pixels, None), config)
    ]
    model.train(was_training)
    if np.isnan(probabilities := np.concatenate(parts)).any():
        raise FloatingPointError(NOT_A_NUMBER)
    return probabilities


@dataclass(frozen=True)
class Given:
    """Pictures as a model reads them."""

    names: list[str]
    pixels: Pixels
    failed: list[tuple[str, str]]
    """Names of what could not be read, with the reason."""
    changed: str | None
    """What was done to how many of them, in words; None where nothing was."""


def read_pictures(
    sources: Sequence[Path], shape: tuple[int, int, int], *, split: str | None, reading: PictureReading = PLAIN
) -> Given:
    """Pictures in the size and colours that a model reads; what can't be read keeps none of the others back.

    Args:
        sources: Picture files, array files (.npz, .npy, IDX), directories or zip archives of either, or one store.
        shape: Rows, columns and channels.
        split: Only pictures of this split; None for all, which a store does not allow.
        reading: What of a picture is resized, and how.

    Raises:
        ValueError: A store holds pictures of another shape; or there is no picture of that split.
    """
    if len(sources) == 1 and (sources[0] / "header.json").is_file():
        return _from_store(PictureStore.open(sources[0]), shape, split)
    pictures, failed = _find(sources, splits=split is not None)
    if split is not None:
        wanted = split_in(split, SPLITS)
        pictures = [picture for picture in pictures if picture.split == wanted]
        if not pictures and not failed:
            raise ValueError(
                f"{', '.join(map(str, sources))}: no pictures of split {split!r}; leave --split out for all"
            )
    rows, columns, channels = shape
    names, pixels, changes = [], [], Counter[str]()
    for picture in pictures:
        try:
            read = picture.read()
            pixels.append(fitted(read, (rows, columns), channels=channels, reading=reading))
        except (ValueError, OSError, MemoryError) as error:
            failed.append((picture.name, str(error) or "too large for memory"))
            continue
        names.append(picture.name)
        changes[f"resized to {rows} x {columns}"] += read.shape[:2] != (rows, columns)
        changes["turned grey" if channels == 1 else "given colours"] += read.shape[-1] != channels
    made = np.stack(pixels) if pixels else np.empty((0, *shape), np.uint8)
    return Given(names, made, failed, _words(changes, len(names)))


def _words(changes: Counter[str], pictures: int) -> str | None:
    """What was done, as the model reads it."""
    done = [f"{count} of {pictures} {what}" for what, count in changes.items() if count]
    return f"pictures as the model reads them: {', '.join(done)}" if done else None


def _from_store(store: PictureStore, shape: tuple[int, int, int], name: str | None) -> Given:
    if name is None:
        raise ValueError(f"{store.path} is a store: say which of its splits with --split: {', '.join(store.splits)}")
    if store.shape != shape:
        raise ValueError(f"{store.path} holds pictures of shape {store.shape}, the model reads {shape}")
    split = store.split(name)
    pixels = split.pixels
    return Given([f"{split.name}[{index}]" for index in range(len(pixels))], np.asarray(pixels), [], None)


@checked_numbers(overlap=0)
@torch.no_grad()
def motion(model: nn.Module, sources: tuple[Path, Path], *, overlap: int = 20) -> Float[np.ndarray, "rows columns 2"]:
    """Optical flow from one picture file to another, in pixels (columns, rows).

    Args:
        model: Flow of frames; pictures that are larger are cut in tiles, see `tiled_flow`.
        sources: Two picture files of one size; their colours do not count where the model reads grey frames.
        overlap: Rows and columns that neighbouring tiles share, or half a tile if that is less.

    Raises:
        ValueError: A file can't be read, the model reads something else, or the pictures differ in size or are too
            small.
        FloatingPointError: What the model predicts is not a number.
    """
    config = getattr(model, "config", None)
    if not isinstance(config, PerceiverIOConfig) or config.frames is None:
        raise ValueError("this model finds no motion: it needs an input of two frames")
    *tile, channels = config.frames
    first, second = map(_one, sources)
    if first.size != second.size:
        raise ValueError(f"the pictures differ in size: {first.name} has {first.size}, {second.name} {second.size}")
    pixels = [fitted(_pixels(picture), picture.size, channels=channels) for picture in (first, second)]
    frames = scaled(np.stack(pixels))[None].to(next(model.parameters()).device)
    flow = tiled_flow(model.eval(), frames, tile=(tile[0], tile[1]), overlap=min(overlap, min(tile) // 2))
    if flow.isnan().any():
        raise FloatingPointError(NOT_A_NUMBER)
    return flow[0].float().cpu().numpy()


def _find(sources: Sequence[Path], *, splits: bool) -> tuple[list[Picture], list[tuple[str, str]]]:
    """Pictures in files and arrays, with their splits or without; and what can't be read, with the reason."""
    pictures: list[Picture] = []
    failed: list[tuple[str, str]] = []
    for source in sources:
        before = len(pictures) + len(failed)
        try:
            documents, _ = find_documents([source], ARRAY_ENDINGS + PICTURE_ENDINGS, splits=splits)
            arrays = [document for document in documents if document.name.lower().endswith(ARRAY_ENDINGS)]
            if arrays:
                found, unreadable = arrays_without_labels(arrays)
                pictures += found
                failed += unreadable
            if files := [document for document in documents if document not in arrays]:
                found, unreadable = files_as_pictures(files)
                pictures += found
                failed += unreadable
            if len(pictures) + len(failed) == before:
                raise ValueError("there are no pictures in it, labels at most")
        except (ValueError, OSError) as error:
            failed.append((str(source), str(error)))
    return pictures, failed


def _one(source: Path) -> Picture:
    """The picture in a source.

    Raises:
        ValueError: It can't be read, or is not the only one.
    """
    pictures, failed = _find([source], splits=False)
    if failed:
        raise ValueError(said(*failed[0]))
    if len(pictures) > 1:
        raise ValueError(f"{source} holds {len(pictures)} pictures, motion is from one to another: name each file")
    return pictures[0]


def _pixels(picture: Picture) -> UInt8[np.ndarray, "rows columns channels"]:
    try:
        return picture.read()
    except ValueError as error:
        raise ValueError(said(picture.name, str(error))) from error


def said(name: str, reason: str) -> str:
    """A reason, with the name of the file if it does not have it already."""
    return reason if name in reason else f"{name}: {reason}"
