import json
from pathlib import Path
from typing import Any

import pytest

from perceivers.convert.huggingface_config import config_from_huggingface
from perceivers.convert.huggingface_pictures import (
    class_names,
    entries_of_reading,
    picture_size,
    processor_of_reading,
    reading_from_huggingface,
)
from perceivers.picture_reading import PictureReading

CLASSIFIER = {"architectures": ["PerceiverForImageClassificationFourier"], "id2label": {"1": "dog", "0": "cat"}}


def written(directory: Path, values: Any) -> Path:
    (directory / "preprocessor_config.json").write_text(json.dumps(values))
    return directory


def test_what_is_left_out_is_the_processors_default(tmp_path: Path) -> None:
    expected = PictureReading(
        classes=("cat", "dog"),
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        fit="crop",
        crop=(224 / 256, 224 / 256),
    )
    assert reading_from_huggingface(tmp_path, CLASSIFIER) == expected
    assert reading_from_huggingface(written(tmp_path, {}), CLASSIFIER) == expected
    assert picture_size(tmp_path) == (224, 224)


def test_what_the_file_says_is_obeyed(tmp_path: Path) -> None:
    values = {
        "image_processor_type": "PerceiverImageProcessor",
        "do_center_crop": False,
        "size": {"height": 5, "width": 7},
        "resample": 2,
        "rescale_factor": 2 / 255,
        "image_mean": 0.5,
        "image_std": [0.25],
    }
    reading = reading_from_huggingface(written(tmp_path, values), CLASSIFIER)
    assert (reading.fit, reading.resample) == ("stretch", "bilinear")
    assert (reading.mean, reading.std) == ((0.25,), (0.125,))  # the factor of two is in them
    assert picture_size(tmp_path) == (5, 7)
    plain = reading_from_huggingface(written(tmp_path, {"do_normalize": False, "do_rescale": False}), CLASSIFIER)
    assert (plain.mean, plain.std) == ((0.0,), (1 / 255,))


def test_what_is_done_anyway_and_sizes_as_old_files_list_them(tmp_path: Path) -> None:
    values = {"do_convert_rgb": True, "do_pad": False, "size": [5, 7], "crop_size": [5, 14]}
    assert reading_from_huggingface(written(tmp_path, values), CLASSIFIER).crop == (1, 0.5)
    assert picture_size(tmp_path) == (5, 7)


def test_flow_says_what_makes_it_pixels(tmp_path: Path) -> None:
    values = {"architectures": ["PerceiverForOpticalFlow"]}
    assert reading_from_huggingface(tmp_path, values).flow_pixels == pytest.approx(20)
    assert reading_from_huggingface(tmp_path, values, flow_scale=0.2).flow_pixels == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image_processor_type": "ViTImageProcessor"}, "image_processor_type='ViTImageProcessor' is not one of"),
        ({"do_resize": False}, "do_resize=false"),
        ({"do_pad": True}, "do_pad=true"),
        ({"do_flip_channel_order": True}, "do_flip_channel_order=true is not done here"),
        ({"do_normalize": None}, "do_normalize=null means one thing or the other"),
        ({"size": {"shortest_edge": 5}}, r"size=\{'shortest_edge': 5\} must be a number, or height and width"),
        ({"size": 7, "crop_size": 5}, "size=7 x 7 is larger than crop_size=5 x 5"),
        ({"resample": 9}, "resample=9 is not one of Pillow's numbers"),
        ({"image_mean": [0.5], "image_std": [0.5, 0.5]}, "must have as many numbers"),
        ({"image_mean": 0, "image_std": 0}, "must be above 0"),
        ([1], "it must hold entries by name"),
    ],
)
def test_what_is_not_done_is_refused_by_name(values: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"preprocessor_config\.json: .*{message}"):
        reading_from_huggingface(written(tmp_path, values), CLASSIFIER)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    """Of the classifier of transformers that takes any size."""
    model = {"architectures": ["PerceiverForImageClassificationFourier"], "num_cross_attention_heads": 1}
    config = config_from_huggingface(model | {"num_labels": 3}, size=(7, 7))
    readings = [
        PictureReading(classes=("a", "b", "c")),
        PictureReading(mean=(0.5, 0.25, 0.125), std=(1.0, 2.0, 3.0), fit="stretch", resample="bilinear"),
        PictureReading(fit="crop", crop=(7 / 8, 7 / 11)),
    ]
    for reading in readings:
        written(tmp_path, processor_of_reading(reading, config))
        again = reading_from_huggingface(tmp_path, model | entries_of_reading(reading, config))
        assert again.classes == reading.classes
        assert (again.resample, again.crop) == (reading.resample, reading.crop)
        assert again.mean == pytest.approx(reading.mean * (3 // len(reading.mean)))
        assert again.std == pytest.approx(reading.std * (3 // len(reading.std)))
        assert again.fit == {"cover": "crop"}.get(reading.fit, reading.fit)
    assert processor_of_reading(PictureReading(), config_from_huggingface(model, size=(5, 7))) is None


def test_flow_in_pixels_is_not_multiplied_again(tmp_path: Path) -> None:
    values = {"architectures": ["PerceiverForOpticalFlow"], "num_cross_attention_heads": 1}
    for scale, pixels in ((0.2, 1.0), (0.01, 20.0)):
        config = config_from_huggingface(values, flow_scale=scale)
        entries = entries_of_reading(PictureReading(flow_pixels=pixels), config)
        assert reading_from_huggingface(tmp_path, values | entries).flow_pixels == pytest.approx(pixels)


def test_names_are_numbered_without_a_gap() -> None:
    assert class_names({}) is None
    assert class_names({"id2label": {0: "a", 1: "b"}}) == ("a", "b")
    assert class_names({"id2label": {"1": "LABEL_1", "0": "LABEL_0"}}) is None
    with pytest.raises(ValueError, match="id2label must number its names 0 to 1, each once; look at '1'"):
        class_names({"id2label": {"0": "a", "2": "b"}})
