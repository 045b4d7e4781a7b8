import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perceivers.evaluate.plots import new_figure, plot_training

matplotlib = pytest.importorskip("matplotlib")

ROWS = [
    {"step": 1, "train/nats": 3.0},
    {"step": 2, "train/nats": None},
    {"step": 2, "validation/nats": 2.5},
    {"step": 3, "train/nats": 2.0, "tokens": 7},
]


def pixels(path: Path) -> np.ndarray:
    import matplotlib.image

    return matplotlib.image.imread(path)


def colored(image: np.ndarray, color: str) -> int:
    """Pixels that are about of `color`."""
    import matplotlib.colors

    return int((np.abs(image[..., :3] - matplotlib.colors.to_rgb(color)).max(-1) < 0.15).sum())


def test_a_picture_with_both_curves(tmp_path: Path) -> None:
    path = tmp_path / "training.png"
    plot_training(ROWS, path, baselines={"4-gram": 2.2}, title="a run")
    assert path.read_bytes().startswith(b"\x89PNG")
    image = pixels(path)
    assert image.shape[:2] == (675, 1200)
    assert colored(image, "#4C72B0") > 500
    assert colored(image, "#C44E52") > 20  # its mark in the legend: one point makes no line


@pytest.mark.parametrize("rows", [[], [{"step": 1, "validation/nats": 0.5}], [{"step": 1, "train/nats": None}]])
def test_runs_without_a_curve(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    plot_training(rows, tmp_path / "training.png")
    assert pixels(tmp_path / "training.png").std() > 0


def test_nothing_of_matplotlibs_state_is_left() -> None:
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    new_figure(3.0, 2.0)
    assert plt.get_fignums() == before


def test_matplotlib_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"plots need matplotlib: pip install 'perceivers\[plots\]'"):
        new_figure(3.0, 2.0)
