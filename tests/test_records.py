import dataclasses
import json
import math
import pkgutil
import re
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, Literal, get_type_hints

import numpy as np
import pytest
import yaml

import perceivers
from perceivers.data.config import CopyConfig, DataConfig
from perceivers.key_use import KeyUse
from perceivers.models.config import ModelConfig
from perceivers.models.perceiver_ar_config import (
    InputQueries,
    LearnedQueries,
    MLPQueries,
    PerceiverARConfig,
    RotaryPositions,
    TablePositions,
)
from perceivers.presets import PRESETS, preset
from perceivers.records import check_finite, from_dict, not_negative, parse_json, record, to_dict
from perceivers.train.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Point:
    at: tuple[float, float] = (0.0, 0.0)
    weights: tuple[int, ...] = ()


AR = {"kind": "perceiver_ar"}


def through_files(config: Any) -> list[Any]:
    """What a JSON and a YAML file give back."""
    return [json.loads(json.dumps(to_dict(config))), yaml.safe_load(yaml.safe_dump(to_dict(config)))]


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_comes_back_from_a_file(name: str) -> None:
    config = preset(name)
    for values in through_files(config):
        assert from_dict(TrainConfig, values) == config


@pytest.mark.parametrize("queries", [InputQueries(), MLPQueries(layers=3), LearnedQueries(shared=True)])
@pytest.mark.parametrize(
    "positions", [RotaryPositions(head_share=0.5, max_wavelength=97), TablePositions(sizes=(3, 5, 7), learned=True)]
)
def test_every_choice_of_a_model_comes_back(queries: Any, positions: Any) -> None:
    config = PerceiverARConfig(queries=queries, positions=positions, extra_cross_attends=(1, 3), dim=48)
    for values in through_files(config):
        assert from_dict(ModelConfig, values) == config


@pytest.mark.parametrize("data", [CopyConfig(length=10), DataConfig(batch_size=3, stretch=(0.95, 1.0), min_crop=2)])
def test_data_without_a_kind_is_told_by_its_fields(data: Any) -> None:
    config = replace(preset("copy_tiny"), data=data)
    for values in through_files(config):
        assert from_dict(TrainConfig, values) == config


def test_fields_that_are_missing_take_their_defaults() -> None:
    assert from_dict(PerceiverARConfig, {"depth": 3}) == PerceiverARConfig(depth=3)
    assert from_dict(PerceiverARConfig, {"queries": {"kind": "mlp"}}) == PerceiverARConfig(queries=MLPQueries())


def test_an_integer_is_a_float_as_well() -> None:
    assert from_dict(Point, {"at": [1, 2.5], "weights": [3, 5, 7]}) == Point(at=(1, 2.5), weights=(3, 5, 7))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": AR | {"dimm": 3}}, "model.dimm: no such field of PerceiverARConfig; did you mean 'dim'?"),
        ({"zzz": 3}, "zzz: no such field of TrainConfig; it has model, data, objective"),
        ({7: 3}, "7: no such field of TrainConfig"),
        ({"data": {"lenght": 4, "min_mirrored": 1}}, "data.lenght: no such field of CopyConfig; did you mean 'length'"),
        (
            {"model": AR | {"positions": {"kind": "spiral"}}},
            "model.positions: kind 'spiral' is not one of 'rotary', 'table'",
        ),
        ({"model": AR | {"queries": {}}}, "model.queries: needs a kind, one of 'input', 'mlp', 'learned'"),
        ({"model": {"dim": 3}}, "model: needs a kind, one of 'perceiver_ar', 'ecp', 'perceiver_io', 'hip'"),
        ({"model": AR | {"positions": {"kind": [1]}}}, r"model.positions: kind '\[1\]' is not one of"),
        ({"model": AR | {"dim": "64"}}, "model.dim: got '64', needs int"),
        ({"model": AR | {"input_dim": 0.5}}, "model.input_dim: got 0.5, needs int or None"),
        ({"model": 3}, "model: got 3, needs PerceiverARConfig or ECPConfig"),
        ({"optim": {"lr": "3e-4"}}, "optim.lr: got '3e-4', needs float"),
        ({"optim": {"betas": [0.9]}}, r"optim.betas: got \(0.9,\), needs tuple\[float, float\]"),
        ({"optim": {"schedule": "cosin"}}, "optim.schedule: got 'cosin', needs 'constant' or 'cosine' or"),
        ({"seed": True}, "seed: got True, needs int"),
    ],
)
def test_what_does_not_fit_is_named(values: dict[Any, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_dict(TrainConfig, values)


def test_a_file_that_holds_no_fields_is_refused() -> None:
    with pytest.raises(ValueError, match="config: got 'text', needs PerceiverARConfig or"):
        from_dict(ModelConfig, "text")


def test_checks_of_the_config_itself_are_made() -> None:
    with pytest.raises(ValueError, match="num_latents=0 must lie in"):
        from_dict(ModelConfig, AR | {"num_latents": 0})


# Numbers


def settings() -> list[type]:
    """All classes of settings."""
    names = [info.name for info in pkgutil.walk_packages(perceivers.__path__, "perceivers.")]
    modules = [import_module(name) for name in names if name.rsplit(".", 1)[-1].endswith("config")]
    found = {value for module in modules for value in vars(module).values() if dataclasses.is_dataclass(value)}
    return sorted((cls for cls in found if isinstance(cls, type)), key=str)


def number_fields(cls: type) -> list[str]:
    return [name for name, hint in get_type_hints(cls).items() if re.search(r"\bfloat\b", str(hint))]


def bare(cls: type) -> Any:
    """An instance with its defaults, and None where there is none."""
    made = object.__new__(cls)
    for f in dataclasses.fields(cls):
        value = f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
        object.__setattr__(made, f.name, None if value is dataclasses.MISSING else value)
    return made


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_setting_is_nan_or_infinite(value: float) -> None:
    tried = set()
    for cls in settings():
        for name in number_fields(cls):
            made = bare(cls)
            is_tuple = isinstance(getattr(made, name), tuple)
            object.__setattr__(made, name, (1.0, value) if is_tuple else value)
            with pytest.raises(ValueError, match=f"^{name}={value} must be a finite number$"):
                check_finite(made)
            assert cls.__post_init__.__qualname__.startswith("record."), cls  # which calls it
            tried.add(name)
    assert {"lr", "betas", "max_minutes", "temperature", "stretch", "mask_share", "dropout", "init_std"} <= tried


@record
class Settings:
    number: float | None = None
    numbers: tuple[float, ...] = ()
    whole: int = 1

    def __post_init__(self) -> None:
        not_negative(self, "whole")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"number": math.nan}, "number=nan must be a finite number"),
        ({"numbers": [1.0, math.inf]}, "numbers=inf must be a finite number"),
        ({"whole": -1}, "whole=-1 must be 0 or more"),
    ],
)
def test_a_record_checks_its_numbers(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Settings(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})
    for text in through_files(values):
        with pytest.raises(ValueError, match=said):
            from_dict(Settings, text)


def test_records_inside_others_are_named() -> None:
    made = bare(Settings)
    object.__setattr__(made, "number", math.nan)

    @dataclass
    class Outer:
        inner: Any

    with pytest.raises(ValueError, match=r"^inner\.number=nan must be a finite number$"):
        check_finite(Outer(made))


def test_records_are_frozen_and_named() -> None:
    made = Settings(number=1.5)
    assert replace(made, whole=3) == Settings(number=1.5, whole=3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.whole = 2  # pyright: ignore[reportAttributeAccessIssue]


@record
class Layer:
    width: int = 3
    share: float = 0.5
    most: int | None = None
    on: bool = True
    name: str = "a"
    kind: Literal["one", "two"] = "one"
    shape: tuple[int, ...] = ()
    inner: CopyConfig | None = None


@pytest.mark.parametrize(
    "wrong",
    [
        {"width": 3.0},
        {"width": 1e3},
        {"width": "12"},
        {"width": True},
        {"width": None},
        {"width": np.float32(3)},
        {"share": "0.5"},
        {"share": True},
        {"share": 10**400},
        {"share": None},
        {"most": 2.5},
        {"most": False},
        {"on": "no"},
        {"on": 1},
        {"on": None},
        {"name": 3},
        {"kind": "three"},
        {"shape": 3},
        {"shape": (3, 5.5)},
        {"shape": [3, True]},
        {"inner": {"length": 10}},
    ],
)
def test_a_field_of_another_kind(wrong: dict[str, Any]) -> None:
    """Made by hand, too: a float for a number of layers is none, and "no" is not false."""
    (name,) = wrong
    with pytest.raises(ValueError, match=rf"^{name}=.* is of the wrong kind: needs "):
        Layer(**wrong)


def test_numbers_of_numpy_are_numbers() -> None:
    made = Layer(width=np.int64(7), share=np.float32(0.25), shape=[np.int32(3), 5])  # pyright: ignore
    assert made == Layer(width=7, share=0.25, shape=(3, 5))
    assert [type(value) for value in (made.width, made.share, *made.shape)] == [int, float, int, int]
    assert from_dict(Layer, json.loads(json.dumps(to_dict(made)))) == made
    assert hash(made) == hash(Layer(width=7, share=0.25, shape=(3, 5)))


def test_a_record_without_a_required_field() -> None:
    with pytest.raises(ValueError, match=r"keys: lacks held_steps, down"):
        from_dict(KeyUse, {}, path="keys")


def test_json_that_is_nested_too_deeply() -> None:
    with pytest.raises(json.JSONDecodeError, match="nested too deeply"):
        parse_json("[" * 100_000)
    assert parse_json(b'{"a": [1]}') == {"a": [1]}
