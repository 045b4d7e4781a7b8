import subprocess
import sys

import pytest

from perceivers.data.masked_config import MaskedTextConfig


def test_the_papers_masking_is_the_default() -> None:
    config = MaskedTextConfig()
    assert (config.kind, config.share, config.unit) == ("masked_text", 0.15, "words")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batch_size": 0}, r"batch_size=0 must be at least 1 row"),
        ({"share": 0.0}, r"share=0.0 must lie between 0 and 1"),
        ({"share": 1.0}, r"share=1.0 must lie between 0 and 1"),
    ],
)
def test_what_cannot_be_is_refused(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MaskedTextConfig(**values)


def test_units_other_than_words_and_bytes_are_refused() -> None:
    config = MaskedTextConfig()
    object.__setattr__(config, "unit", "letters")  # the constructor's types are checked in tests, not in use
    with pytest.raises(ValueError, match=r"unit='letters' must be 'words' .* or 'bytes'"):
        config.__post_init__()


def test_the_config_imports_no_torch() -> None:
    code = "import sys, perceivers.data.masked_config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
