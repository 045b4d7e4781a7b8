"""Which batches a run trains on, and whether its model can read them."""

from pathlib import Path
from typing import Any

from perceivers.commands import command
from perceivers.data.batch import NUM_SPECIAL
from perceivers.data.config import CopyConfig, DataConfig
from perceivers.data.loader import TokenLoader
from perceivers.data.masked_config import MaskedTextConfig
from perceivers.data.masked_text import MaskedTextLoader
from perceivers.data.music import VOCAB_SIZE as MUSIC_IDS
from perceivers.data.picture_config import PictureConfig, WarpConfig
from perceivers.data.picture_loader import PictureLoader
from perceivers.data.picture_store import PictureStore
from perceivers.data.synthetic import MirroredLoader
from perceivers.data.text import BYTES_VOCAB_SIZE
from perceivers.data.tokens import TokenStore
from perceivers.data.warps import WarpLoader
from perceivers.evaluate.pictures import check_pictures
from perceivers.models.config import ModelConfig, SequenceConfig
from perceivers.models.feature_config import TokenFeatures
from perceivers.models.input_config import InputConfig
from perceivers.models.perceiver_config import PerceiverIOConfig
from perceivers.train.config import CrossEntropy, TrainConfig, num_targets

Loader = TokenLoader | MirroredLoader | MaskedTextLoader | PictureLoader | WarpLoader
"""Batches as a function of the step."""

Store = TokenStore | PictureStore

PREPARE = {"masked_text": "text", "pictures": "pictures", "warps": "pictures"}
"""What makes a store, by the kind of data; tokens can be of several."""
PREPARE_TOKENS = {MUSIC_IDS + NUM_SPECIAL: "music", BYTES_VOCAB_SIZE + NUM_SPECIAL: "text"}
"""What makes a store of tokens, by the ids that a model knows."""
PRESETS = {"performance": "music_small", "bytes": "text_small", "pictures": "mnist"}
"""A preset to begin with, by what a store holds."""


def open_store(path: str | Path) -> Store:
    """Open the store at `path`, whichever kind it is.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is damaged.
    """
    return PictureStore.open(path) if PictureStore.is_at(path) else TokenStore.open(path)


def training_data(
    config: TrainConfig, store: Store | None, *, rank: int = 0, world_size: int = 1
) -> tuple[str, Loader, str]:
    """What the model will read ("tokenizer" in its config.json), training batches and fingerprint of a run's data.

    Of each batch the process `rank` of `world_size` gets its share.

    Raises:
        ValueError: The store is missing, not needed, or not for this model.
    """
    data, model = config.data, config.model
    order: dict[str, Any] = {"seed": config.seed, "rank": rank, "world_size": world_size}
    match data, store:
        case CopyConfig(), None:
            sequence_model(model)
            return "copy", MirroredLoader(data, **order), f"copy-{data.length}"
        case CopyConfig(), _:
            raise ValueError("this preset makes its own data (the copy task): leave --data out")
        case _, None:
            raise ValueError(f"this preset needs training data: --data STORE, made by `{_prepared(config)}`")
        case DataConfig(), TokenStore():
            return store.tokenizer, _token_loader(config, data, store, order), store.fingerprint
        case MaskedTextConfig(), TokenStore():
            loader = MaskedTextLoader(store.split("train"), data, seq_len=masked_text_length(model, store), **order)
            return "masked_bytes", loader, store.fingerprint
        case PictureConfig(), PictureStore():
            has_classes = isinstance(config.objective, CrossEntropy)
            check_picture_store(store, model, has_classes=has_classes)
            return "pictures", PictureLoader(store.split("train"), data, **order), store.fingerprint
        case WarpConfig(), PictureStore():
            grey = reads_grey(model, data, store)
            return "frames", WarpLoader(store.split("train"), data, grey=grey, **order), store.fingerprint
    raise _wrong_store(config, store)


def _prepared(config: TrainConfig) -> str:
    """The command that makes what a run learns from."""
    vocab_size = getattr(config.model, "vocab_size", NUM_SPECIAL)
    kind, ids = PREPARE.get(config.data.kind) or PREPARE_TOKENS.get(vocab_size, "tokens"), []
    if kind == "tokens":
        ids = ["--vocab-size", vocab_size - NUM_SPECIAL]
    return command("prepare", kind, "DIR", *ids, "--out", "STORE")


def _wrong_store(config: TrainConfig, store: Store) -> ValueError:
    other = f"another preset, such as {PRESETS[store.tokenizer]}" if store.tokenizer in PRESETS else "another preset"
    why = "which is not what this preset learns from"
    if isinstance(config.data, DataConfig) == isinstance(store, PictureStore):
        why = f"which data of kind {config.data.kind!r} are not made of"
    return ValueError(
        f"{store.path} holds {store.tokenizer!r}, {why}: give a store made by `{_prepared(config)}`, or choose {other}"
    )


def _token_loader(config: TrainConfig, data: DataConfig, store: TokenStore, order: dict[str, Any]) -> TokenLoader:
    model = sequence_model(config.model)
    if (data.transpose or data.stretches) and store.tokenizer != "performance":
        raise _wrong_store(config, store)
    check_store(store, model)
    return TokenLoader(
        store.split("train"),
        data,
        seq_len=model.max_seq_len + 1,
        num_targets=num_targets(model, config.objective),
        **order,
        tokenizer=store.tokenizer,
    )


def sequence_model(model: ModelConfig) -> SequenceConfig:
    """`model`, if it predicts the next token.

    Raises:
        ValueError: It does something else.
    """
    if not isinstance(model, SequenceConfig):
        raise ValueError(f"a model of kind {model.kind!r} does not predict the next token: choose another preset")
    return model


def check_store(store: TokenStore, model: SequenceConfig) -> None:
    """Refuse a store that the model can't read.

    Raises:
        ValueError: It has more ids, axes or positions than the model; says what to set.
    """
    header = store.header
    needed = header.vocab_size + NUM_SPECIAL
    if needed > model.vocab_size:
        raise ValueError(
            f"the store holds {header.tokenizer!r} tokens, {header.vocab_size} ids and {NUM_SPECIAL} special ones; the "
            f"model knows {model.vocab_size}: choose a preset for this kind of data, or --model.vocab-size {needed}"
        )
    if (axes := model.position_axes) != 1:
        raise ValueError(
            f"this model's positions have {axes} axes, those of a token store have one; training on images is not built"
        )
    longest = max(int(store.split(name).lengths.max()) for name in store.splits) + 1  # SOS is an input, EOS is not
    if model.max_position is not None and longest > model.max_position:
        raise ValueError(
            f"the store's longest document has {longest} positions, the model's table ends at {model.max_position}: "
            f"choose rotary positions, or --model.positions.sizes {longest + 1}"
        )


def masked_text_length(model: ModelConfig, store: TokenStore) -> int:
    """Bytes that a model of masked text reads.

    Raises:
        ValueError: It reads something else, or the store holds no bytes.
    """
    if store.tokenizer != "bytes":
        raise ValueError(
            f"{store.path} holds {store.tokenizer!r} tokens; masked text is made of bytes: "
            f"give a store made by `{command('prepare', 'text', 'DIR', '--out', 'STORE')}`"
        )
    match model:
        case PerceiverIOConfig(input=InputConfig(features=TokenFeatures(seq_len=seq_len))):
            return seq_len
    raise ValueError(f"a model of kind {model.kind!r} with this input reads no masked text: choose another preset")


def check_picture_store(store: PictureStore, model: ModelConfig, *, has_classes: bool) -> None:
    """Refuse pictures that the model can't read.

    Raises:
        ValueError: They have another shape, no classes where they are needed, or more than the model knows.
    """
    classes = None
    if has_classes:
        if store.classes is None:
            raise ValueError(f"{store.path} has no classes, which training a classifier needs: {CLASS_FOLDERS}")
        classes = len(store.classes)
    check_pictures(model, store.shape, classes=classes)


CLASS_FOLDERS = "prepare pictures whose folders are their classes, or a file that has labels"


def reads_grey(model: ModelConfig, data: WarpConfig, store: PictureStore) -> bool:
    """Whether the pairs of frames that a model reads have no colours, which can be made of any photos.

    Raises:
        ValueError: It reads no frames, or others than can be made of the store.
    """
    if not isinstance(model, PerceiverIOConfig) or model.frames is None:
        raise ValueError(
            f"a model of kind {model.kind!r} with this input reads no pairs of frames: choose another preset"
        )
    rows, columns, channels = model.frames
    if (rows, columns) != tuple(data.shape):
        raise ValueError(
            f"--data.shape {data.shape[0]} {data.shape[1]}, but the model reads frames of {rows} x {columns}: "
            "make them equal"
        )
    if channels not in (1, found := store.shape[-1]):
        raise ValueError(f"the model reads frames of {channels} channels, {store.path} has photos of {found}")
    return channels == 1
