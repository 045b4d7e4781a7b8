import json
import re
from pathlib import Path

import pytest

from perceivers.cli.presets import run as presets
from perceivers.cli.show import describe_model
from perceivers.models.build import build
from perceivers.models.config import ModelConfig
from perceivers.models.ecp_config import ECPConfig
from perceivers.models.feature_config import PixelFeatures
from perceivers.models.hip_config import DataSet, HiPConfig, Modality
from perceivers.models.input_config import InputConfig
from perceivers.models.output_config import AverageOutputConfig, GridQueries, QueryOutputConfig
from perceivers.models.perceiver_ar_config import PerceiverARConfig
from perceivers.models.perceiver_config import EncoderConfig, PerceiverIOConfig
from perceivers.presets import PRESETS, preset
from perceivers.train.metrics import read_metrics

from .conftest import Command

TRACED = [name for name in PRESETS if preset(name).model.kind != "perceiver_ar"]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in TRACED else []) for name in PRESETS]
)
def test_every_preset(command: Command, name: str) -> None:
    done = command("show", name)
    assert done.code == 0
    assert done.out.startswith(f"{name}: ")
    for row in ("parameters", "inputs", "weights", "forward", "memory, float32", "memory, bfloat16", "optimiser"):
        assert row in done.out


ENCODER = EncoderConfig(num_latents=5, dim=12, blocks=2, depth=1, heads=3, widening=2)
PICTURES = InputConfig(features=PixelFeatures(shape=(5, 7, 3)))
FAMILIES: list[tuple[ModelConfig, tuple[str, ...]]] = [
    (
        PerceiverARConfig(max_seq_len=13, num_latents=5, dim=8, depth=1, heads=2, cross_heads=2),
        ("13: 5 latents and 8 before them", "a predicted token", "latent stack"),
    ),
    (
        ECPConfig(max_seq_len=13, segment_len=5, dim=8, depth=2, heads=2),
        ("13 in segments of 5, and every one predicts; 2 layers reach 10 back", "a predicted token", "259 x 8"),
    ),
    (
        ECPConfig(max_seq_len=13, num_latents=5, dim=8, depth=2, heads=2, pattern="double"),
        ("13: 5 latents and 8 before them, pattern double",),
    ),
    (
        PerceiverIOConfig(input=PICTURES, encoder=ENCODER, output=AverageOutputConfig(classes=7)),
        ("35 of 3 channels", "average of the latents", "a sample", "2 of 1 layers, 3 heads, 12 channels"),
    ),
    (
        PerceiverIOConfig(input=PICTURES, encoder=ENCODER, output=QueryOutputConfig(queries=GridQueries(shape=(3, 5)))),
        ("queries", "15"),
    ),
    (
        HiPConfig(
            data_sets=(DataSet(name="digits", modalities=(Modality(name="x", positions=35, channels=3),)),),
            groups=(2, 1, 2),
            latents=(4, 4, 4),
            dims=(8, 12, 8),
            heads=(2, 3, 2),
            embed_dim=6,
        ),
        ("inputs of digits", "35 positions", "2, 1, 2", "x 35 x 3"),
    ),
]


@pytest.mark.parametrize(("config", "said"), FAMILIES, ids=[config.kind for config, _ in FAMILIES])
def test_every_family(config: ModelConfig, said: tuple[str, ...]) -> None:
    shown = describe_model(config)
    assert f"{sum(parameter.numel() for parameter in build(config).parameters()):,}" in shown
    for words in said:
        assert words in shown


def test_numbers_of_a_preset(command: Command) -> None:
    """Of the published ImageNet model, which no machine need build for it."""
    out = command("show", "imagenet64").out
    assert "770,094,339" in out
    assert "random table, 66 + 66 + 5 x 1024" in out
    assert "1,024 latents and 11,392 before them" in out
    assert "750,000, of 1 rows in each of 2,048 batches: random crops" in out


def test_run(command: Command, text_run: Path, text_store: Path) -> None:
    out = command("show", text_run).out
    tokens = read_metrics(text_run)[-2]["tokens"]
    assert f"{text_store} (bytes, " in out
    assert "train 2 documents, 60 tokens" in out
    assert f"3 steps, {tokens:,} tokens, 0.0 minutes" in out
    assert "validation/nats" in out


def test_run_that_has_not_begun(command: Command, text_run: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text((text_run / "config.yaml").read_text())
    out = command("show", tmp_path).out
    assert "no step on record" in out
    assert "none saved yet" in out
    assert "made as it is needed" in out
    (tmp_path / "data.json").write_text("{}")
    assert "data.json is damaged" in command("show", tmp_path).err


def test_saved_model(command: Command, text_run: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((text_run / "config.json").read_text())
    out = command("show", tmp_path).out
    assert "reads 'bytes' tokens; how it was trained is not on record" in out
    (tmp_path / "config.json").write_text("{}")
    assert "is not a model's config" in command("show", tmp_path).err


@pytest.mark.parametrize(("gpus", "start"), [(4, "torchrun --nproc-per-node 4"), (64, "torchrun --nnodes 8")])
def test_how_to_share_it(command: Command, gpus: int, start: str) -> None:
    done = command("show", "bytes_1b", "--gpus", gpus, "--memory", 40)
    assert done.code == 0, done.err
    shown = dict(line.split("  ", 1) for line in done.out.splitlines() if "  " in line.strip())
    dp, fsdp, cp = (int(x) for x in re.findall(r"(?:dp|fsdp|cp) (\d+)", shown["shared"]))
    assert dp * fsdp * cp == gpus
    assert "GB of 40 GB a GPU: weights" in shown["memory"]
    assert "989 TFLOP/s in bfloat16 of which products reach 50%" in shown["assumed"]
    assert f"{start} " in done.out
    assert f"--parallel.dp {dp} --parallel.fsdp {fsdp} --parallel.cp {cp} --data.batch-size" in done.out


def test_a_run_can_be_shared_too(command: Command, text_run: Path) -> None:
    assert "2 GPUs" in command("show", text_run, "--gpus", 2).out


def test_what_does_not_fit_on_gpus(command: Command) -> None:
    done = command("show", "bytes_1b", "--gpus", 2, "--memory", 5)
    assert done.code == 2
    assert "no way to share this run among 2 GPUs fits: the smallest takes" in done.err
    done = command("show", "bytes_1b", "--gpus", 0)
    assert done.code == 2
    assert "--gpus 0 --memory 80: give at least 1 GPU" in done.err


def test_mistakes(command: Command, tmp_path: Path) -> None:
    assert (command("show", "music_smal").code, command("show", tmp_path).code) == (2, 2)
    assert "did you mean music_small" in command("show", "music_smal").err
    assert "is neither a run nor a saved model" in command("show", tmp_path).err


def test_presets(command: Command) -> None:
    out = command("presets").out
    assert [line.split()[0] for line in out.splitlines()] == list(PRESETS)
    assert command("presets", "--help").code == 0
    with pytest.raises(ValueError, match="takes no arguments, got 'pg19'; try perceivers show pg19"):
        presets(["pg19"])


def test_a_model_of_transformers(command: Command, tmp_path: Path) -> None:
    """Only its config.json is read."""
    config = {"model_type": "perceiver", "architectures": ["PerceiverForMaskedLM"], "d_model": 16, "d_latents": 24}
    sizes = {"num_latents": 3, "num_self_attends_per_block": 1, "max_position_embeddings": 11, "qk_channels": 8}
    (tmp_path / "config.json").write_text(json.dumps(config | sizes | {"v_channels": 24, "vocab_size": 262}))
    done = command("show", tmp_path)
    assert done.code == 0, done.err
    assert "reads 'masked_bytes' tokens; how it was trained is not on record" in done.out


def test_warm_up_as_it_will_be(command: Command) -> None:
    for name, said in (
        (
            "music_small",
            "adam, 0.0012 after 200 steps or 5 % of the run (3 minutes at most), whichever is first, then",
        ),
        ("text_small", "adamw, 0.0006 after 500 steps, then cosine"),
    ):
        assert said in command("show", name).out
