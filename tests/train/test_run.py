import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from perceivers.data.tokens import StoreWriter, TokenStore
from perceivers.generate.loaded import Loaded
from perceivers.hub import read_model, write_model
from perceivers.models.build import build
from perceivers.models.perceiver_ar_config import PerceiverARConfig, TablePositions
from perceivers.records import from_dict
from perceivers.train.checkpoint import checkpoints
from perceivers.train.config import TrainConfig
from perceivers.train.data import check_store
from perceivers.train.errors import TrainingError
from perceivers.train.loop import train
from perceivers.train.metrics import read_metrics

Tiny = Callable[..., TrainConfig]


def test_what_a_run_leaves(tiny: Tiny, store: TokenStore, tmp_path: Path) -> None:
    config = tiny(max_steps=2)
    run = train(config, tmp_path / "a" / "run", store=store)
    names = {"config.yaml", "data.json", "metrics.jsonl", "config.json", "model.safetensors", "checkpoints"}
    assert {path.name for path in (tmp_path / "a" / "run").iterdir()} == names
    assert from_dict(TrainConfig, yaml.safe_load((run.out / "config.yaml").read_text())) == config
    assert json.loads((run.out / "data.json").read_text())["fingerprint"] == store.fingerprint
    model, tokenizer = read_model(run.out)
    assert tokenizer == "ids"
    for name, value in run.model.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


def test_a_run_is_not_overwritten(tiny: Tiny, store: TokenStore, tmp_path: Path) -> None:
    train(tiny(max_steps=2), tmp_path / "run", store=store)
    with pytest.raises(ValueError, match=r"run holds a run that got to step-00000002: add --resume to go on"):
        train(tiny(max_steps=2), tmp_path / "run", store=store)


def test_a_saved_model_is_not_overwritten(tiny: Tiny, store: TokenStore, tmp_path: Path) -> None:
    config = tiny(max_steps=1)
    write_model(build(config.model).state_dict(), config.model, "ids", tmp_path / "model")
    before = (tmp_path / "model" / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="model holds a saved model: add --resume to go on, or choose another --out"):
        train(config, tmp_path / "model", store=store)
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == before


def test_one_training_at_a_time(tiny: Tiny, store: TokenStore, tmp_path: Path) -> None:
    out, tried = tmp_path / "run", []

    def meanwhile(model: nn.Module, step: int) -> dict[str, float]:
        for work in (
            lambda: train(tiny(max_steps=5), out, store=store),
            lambda: train(tiny(max_steps=5), out, store=store, resume=True),
            lambda: Loaded(model, "ids").save_pretrained(out),
        ):
            with pytest.raises(FileExistsError, match="run: another process is writing in this directory; wait for it"):
                work()
            tried.append(step)
        return {}

    train(tiny(max_steps=3, save_every=1, eval_every=1), out, store=store, evaluate=meanwhile)
    assert tried == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert [row["step"] for row in read_metrics(out)] == [1, 2, 3]
    train(tiny(max_steps=4), out, store=store, resume=True)
    assert checkpoints(out)[-1].name == "step-00000004"


def test_a_lock_of_the_dead_is_none(tiny: Tiny, store: TokenStore, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").touch()
    train(tiny(max_steps=1), tmp_path / "run", store=store)
    assert not (tmp_path / "run" / ".lock").exists()


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, RuntimeError])
def test_the_directory_is_free_after_a_failure(
    tiny: Tiny, store: TokenStore, tmp_path: Path, interruption: type[BaseException]
) -> None:
    def fail(model: nn.Module, step: int) -> dict[str, float]:
        raise interruption

    with pytest.raises(interruption) as kept:  # with its frames
        train(tiny(max_steps=1), tmp_path / "run", store=store, evaluate=fail)
    train(tiny(max_steps=2), tmp_path / "run", store=store, resume=True)
    del kept


def test_a_run_that_can_not_start_leaves_no_directory(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="data"):
        train(tiny(), tmp_path / "run", store=None)
    assert not any(tmp_path.iterdir())


def test_other_data_is_refused_on_resume(
    tiny: Tiny, store: TokenStore, other_store: TokenStore, tmp_path: Path
) -> None:
    train(tiny(max_steps=2), tmp_path / "run", store=store)
    with pytest.raises(ValueError, match=r"the data has changed since .*step-00000002 was saved .*--init and another"):
        train(tiny(max_steps=3), tmp_path / "run", store=other_store, resume=True)
    assert json.loads((tmp_path / "run" / "data.json").read_text())["fingerprint"] == store.fingerprint


def test_init_loads_weights_and_nothing_else(
    tiny: Tiny, store: TokenStore, other_store: TokenStore, tmp_path: Path
) -> None:
    first = train(tiny(max_steps=3), tmp_path / "first", store=store)
    config = tiny(max_steps=1, optim={"schedule": "constant", "weight_decay": 0.0})  # the first update has rate 0
    second = train(config, tmp_path / "second", store=other_store, init=tmp_path / "first")
    assert second.state.step == 1
    for name, value in second.model.state_dict().items():
        assert torch.equal(value, first.model.state_dict()[name]), name


def test_init_of_another_shape_is_refused(tiny: Tiny, store: TokenStore, tmp_path: Path) -> None:
    train(tiny(max_steps=1), tmp_path / "first", store=store)
    shapes = r"first does not fit the model: cross_attend\.\S+ has shape \[\d+.*\], the model \[\d+.*and \d+ more"
    with pytest.raises(ValueError, match=shapes):
        train(tiny(model={"dim": 28}), tmp_path / "second", store=store, init=tmp_path / "first")
    with pytest.raises(ValueError, match=r"unknown layers\.1\.attention"):
        train(tiny(model={"depth": 1}), tmp_path / "second", store=store, init=tmp_path / "first")
    assert not (tmp_path / "second").exists()


def test_init_with_other_tokens_is_refused(tiny: Tiny, store: TokenStore, copying: TrainConfig, tmp_path: Path) -> None:
    train(replace(copying, max_steps=1), tmp_path / "first")
    with pytest.raises(ValueError, match="first was trained on 'copy' tokens, the data has 'ids'"):
        train(tiny(), tmp_path / "second", store=store, init=tmp_path / "first")


def test_init_from_nothing(tiny: Tiny, store: TokenStore, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist"):
        train(tiny(), tmp_path / "run", store=store, init=tmp_path / "nowhere")


def test_a_resumed_run_does_not_read_init_again(tiny: Tiny, store: TokenStore, tmp_path: Path) -> None:
    train(tiny(max_steps=1), tmp_path / "first", store=store)
    train(tiny(max_steps=1), tmp_path / "second", store=store, init=tmp_path / "first")
    train(tiny(max_steps=2), tmp_path / "second", store=store, init=tmp_path / "gone", resume=True)


def test_data_that_is_missing_or_not_needed(
    tiny: Tiny, store: TokenStore, copying: TrainConfig, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="this preset needs training data: --data STORE"):
        train(tiny(), tmp_path / "run")
    with pytest.raises(ValueError, match=r"makes its own data \(the copy task\): leave --data out"):
        train(copying, tmp_path / "run", store=store)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"vocab_size": 15},
            "holds 'ids' tokens, 13 ids and 3 special ones; the model knows 15: .*--model.vocab-size 16",
        ),
        ({"positions": TablePositions(sizes=(12, 12, 12))}, "positions have 3 axes, those of a token store have one"),
        ({"positions": TablePositions()}, r"has 24 positions, the model's table ends at 11: .*positions\.sizes 25"),
        ({"positions": TablePositions(sizes=(24,))}, "has 24 positions, the model's table ends at 23"),
    ],
)
def test_a_store_that_the_model_can_not_read(tiny: Tiny, store: TokenStore, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_store(store, replace(tiny().model, **changes))


def test_tables_that_just_suffice(tiny: Tiny, store: TokenStore, tmp_path: Path) -> None:
    """The longest document has SOS and 23 ids, positions 1 to 24, as inputs; its EOS is only predicted."""
    config = tiny(
        max_steps=5, model={"positions": TablePositions(sizes=(25,))}, data={"batch_size": 8, "min_crop": None}
    )
    assert train(config, tmp_path / "run", store=store).state.step == 5
    check_store(store, replace(tiny().model, positions=TablePositions(), position_source="start"))


def test_a_full_disk_leaves_older_checkpoints(tiny: Tiny, store: TokenStore, tmp_path: Path) -> None:
    """The system lets no file grow beyond 12 kB, which is less than the weights and more than all else."""
    resource = pytest.importorskip("resource", reason="this system has no limits for files")
    train(tiny(max_steps=3), tmp_path / "run", store=store)
    weights = (tmp_path / "run" / "model.safetensors").read_bytes()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, before[1]))
    try:
        with pytest.raises(TrainingError) as error:
            train(tiny(max_steps=5), tmp_path / "run", store=store, resume=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "could not save step 5 to" in str(error.value)
    assert "Make room and go on with --resume" in str(error.value)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000003"]
    assert not list((tmp_path / "run").glob(".*"))
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == weights
    assert train(tiny(max_steps=5), tmp_path / "run", store=store, resume=True).state.step == 5


def test_a_store_without_a_training_split(tiny: Tiny, tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "store", tokenizer="ids", vocab_size=13) as writer:
        writer.append("test", np.arange(5), name="a")
    with pytest.raises(ValueError, match="no split 'train'; it has test"):
        train(tiny(), tmp_path / "run", store=TokenStore.open(tmp_path / "store"))


def test_largest_positions() -> None:
    assert PerceiverARConfig().max_position is None
    assert PerceiverARConfig(positions=TablePositions()).max_position == 4096
    assert PerceiverARConfig(positions=TablePositions(sizes=(7, 5))).max_position == 6
    assert PerceiverARConfig(positions=TablePositions(sizes=(7,)), position_source="end").max_position is None
