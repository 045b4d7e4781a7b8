import subprocess
import sys
from typing import Any

import pytest

from perceivers.convert.huggingface_config import ARCHITECTURES, config_from_huggingface
from perceivers.models import perceiver_published
from perceivers.models.output_config import GridHead, QueryOutputConfig


def settings(name: str, **options: Any) -> dict[str, Any]:
    return {"model_type": "perceiver", "architectures": [name], "num_cross_attention_heads": 1, **options}


def test_no_torch_is_imported() -> None:
    code = "import sys; from perceivers.convert import huggingface_export; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_language_model_is_the_published_one_but_for_its_activation() -> None:
    values = settings("PerceiverForMaskedLM", num_cross_attention_heads=8, qk_channels=256, v_channels=1280)
    config, published = config_from_huggingface(values), perceiver_published.masked_language_model()
    assert config.input == published.input
    assert config.encoder.activation == config.output.activation == "gelu"  # pyright: ignore[reportAttributeAccessIssue]
    tanh = config_from_huggingface(values | {"hidden_act": "gelu_pytorch_tanh"})
    assert tanh.output == published.output


def test_pictures_are_as_large_as_wanted() -> None:
    for kind, grid in (("Fourier", (37, 41)), ("ConvProcessing", (9, 10))):
        config = config_from_huggingface(settings(f"PerceiverForImageClassification{kind}"), size=(37, 41))
        assert config.input.features.grid == grid  # pyright: ignore[reportAttributeAccessIssue]
    learned = config_from_huggingface(settings("PerceiverForImageClassificationLearned", image_size=7), size=(37, 41))
    assert learned.input.features.grid == (7, 7)  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("labels", "classes"), [({}, 2), ({"id2label": {"0": "a", "1": "b", "2": "c"}}, 3), ({"num_labels": 5}, 5)]
)
def test_classes(labels: dict[str, Any], classes: int) -> None:
    config = config_from_huggingface(settings("PerceiverForSequenceClassification", **labels))
    assert isinstance(config.output, QueryOutputConfig)
    assert config.output.channels == classes


def test_flow_is_a_hundredth_unless_pixels_are_wanted() -> None:
    for options, scale in (({}, 0.01), ({"flow_scale": 0.2}, 0.2)):
        output = config_from_huggingface(settings("PerceiverForOpticalFlow"), **options).output
        assert isinstance(output, QueryOutputConfig)
        assert isinstance(output.head, GridHead)
        assert output.head.scale == scale


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            settings("PerceiverModel"),
            "architecture 'PerceiverModel' of transformers is not one of Perceiver",
        ),
        ({"model_type": "perceiver"}, "architecture None of transformers"),
        (settings(ARCHITECTURES[0], num_latents="7"), "num_latents: got '7', needs int"),
        (
            settings(ARCHITECTURES[0], hidden_act="quick_gelu"),
            "hidden_act='quick_gelu' is not built here; built are gelu, ",
        ),
        (settings(ARCHITECTURES[0], qk_channels=256), "self-attention of 256 value channels .* d_latents=1280"),
        (settings(ARCHITECTURES[0], cross_attention_shape_for_attention="k"), "needs 'kv' or 'q'"),
        (settings("PerceiverForOpticalFlow", train_size=[5]), "max_resolution|must be"),
    ],
)
def test_what_is_not_built(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_from_huggingface(values)
