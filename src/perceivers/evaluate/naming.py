"""What a model says of users' own pictures: the class of each, or the motion between two."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import nn

from perceivers.data.picture_arrays import ARRAY_ENDINGS, arrays_as_pictures
from perceivers.data.picture_config import PictureConfig
from perceivers.data.picture_files import PICTURE_ENDINGS, Picture, files_as_pictures, fitted
from perceivers.data.picture_loader import picture_batches, scaled
from perceivers.data.picture_store import PictureSplit, PictureStore
from perceivers.data.sources import find_documents
from perceivers.evaluate.pictures import class_logits
from perceivers.models.flow import tiled_flow
from perceivers.models.perceiver_config import PerceiverIOConfig

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
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    parts = [
        class_logits(model, batch.to(device).pixels).double().softmax(-1).cpu().numpy()
        for batch in picture_batches(PictureSplit("given", pixels, None), config)
    ]
    model.train(was_training)
    return np.concatenate(parts)


def read_pictures(
    sources: Sequence[Path], shape: tuple[int, int, int], *, split: str | None
) -> tuple[list[str], Pixels]:
    """Names and pixels of pictures, each resized to cover `shape` and its middle taken.

    Args:
        sources: Picture files, array files (.npz, .npy, IDX), directories or zip archives of either, or one store.
        shape: Rows, columns and channels.
        split: Only pictures of this split; None for all, which a store does not allow.

    Raises:
        FileNotFoundError: A source does not exist.
        ValueError: There is no picture, one can't be read, or has colours where the shape has none.
    """
    if len(sources) == 1 and (sources[0] / "header.json").is_file():
        return _from_store(PictureStore.open(sources[0]), shape, split)
    pictures = _find(sources, splits=split is not None)
    if split is not None:
        pictures = [picture for picture in pictures if picture.split == split]
    if not pictures:
        raise ValueError(f"{', '.join(map(str, sources))}: no pictures of split {split!r}; leave --split out for all")
    rows, columns, channels = shape
    _check_colours(pictures, channels)
    pixels = [fitted(picture.read(), (rows, columns), channels=channels) for picture in pictures]
    return [picture.name for picture in pictures], np.stack(pixels)


def _from_store(store: PictureStore, shape: tuple[int, int, int], name: str | None) -> tuple[list[str], Pixels]:
    if name is None:
        raise ValueError(f"{store.path} is a store: say which of its splits with --split: {', '.join(store.splits)}")
    if store.shape != shape:
        raise ValueError(f"{store.path} holds pictures of shape {store.shape}, the model reads {shape}")
    pixels = store.split(name).pixels
    return [f"{name}[{index}]" for index in range(len(pixels))], np.asarray(pixels)


@torch.no_grad()
def motion(model: nn.Module, sources: tuple[Path, Path], *, overlap: int = 20) -> Float[np.ndarray, "rows columns 2"]:
    """Optical flow from one picture file to another, in pixels (columns, rows).

    Args:
        model: Flow of frames; pictures that are larger are cut in tiles, see `tiled_flow`.
        sources: Two picture files of one size; their colours do not count where the model reads grey frames.
        overlap: Rows and columns that neighbouring tiles share, or half a tile if that is less.

    Raises:
        FileNotFoundError: A file does not exist.
        ValueError: The model reads something else, or the pictures differ in size or are too small.
    """
    config = getattr(model, "config", None)
    if not isinstance(config, PerceiverIOConfig) or config.frames is None:
        raise ValueError("this model finds no motion: it needs an input of two frames")
    *tile, channels = config.frames
    first, second = (_find([source], splits=False)[0] for source in sources)
    if first.size != second.size:
        raise ValueError(f"the pictures differ in size: {first.name} has {first.size}, {second.name} {second.size}")
    pixels = [fitted(picture.read(), picture.size, channels=channels) for picture in (first, second)]
    frames = scaled(np.stack(pixels))[None].to(next(model.parameters()).device)
    flow = tiled_flow(model.eval(), frames, tile=(tile[0], tile[1]), overlap=min(overlap, min(tile) // 2))
    return flow[0].float().cpu().numpy()


def _find(sources: Sequence[Path], *, splits: bool) -> list[Picture]:
    """Pictures in files and arrays, with their splits or without."""
    documents, _ = find_documents(sources, ARRAY_ENDINGS + PICTURE_ENDINGS, splits=splits)
    arrays = [document for document in documents if document.name.lower().endswith(ARRAY_ENDINGS)]
    files = [document for document in documents if document not in arrays]
    pictures: list[Picture] = arrays_as_pictures(arrays)[0] if arrays else []
    if files:
        found, unreadable = files_as_pictures(files)
        if unreadable:
            raise ValueError(": ".join(unreadable[0]))
        pictures += found
    return pictures


def _check_colours(pictures: Sequence[Picture], channels: int) -> None:
    if channels == 1 and (coloured := [picture.name for picture in pictures if not picture.grey]):
        raise ValueError(f"{coloured[0]} is in colour, the model reads grey pictures: turn it grey first")
