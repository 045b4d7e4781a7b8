from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import perceivers
from perceivers.generate import loaded as module
from perceivers.generate.config import SamplingConfig
from perceivers.generate.loaded import Loaded, load
from perceivers.models.build import build
from perceivers.models.config import PerceiverARConfig


def fresh(tokenizer: str = "ids", *, vocab_size: int = 16) -> Loaded:
    torch.manual_seed(0)
    config = PerceiverARConfig(
        vocab_size=vocab_size, max_seq_len=11, num_latents=5, dim=14, depth=1, heads=7, cross_heads=2, zero_logits=False
    )
    return Loaded(build(config), tokenizer)


def test_raw_ids_are_in_range() -> None:
    """At this temperature all ids are about as likely."""
    ids = fresh().generate(max_tokens=120, sampling=SamplingConfig(temperature=100.0), stop_at_end=False)
    assert ids.dtype == np.int32
    assert len(ids) == 120
    assert set(ids.tolist()) == set(range(13))


def test_a_stream_is_what_generate_returns() -> None:
    model = fresh()
    assert list(model.stream([3, 5], max_tokens=7)) == model.generate([3, 5], max_tokens=7).tolist()


@pytest.mark.parametrize("empty", [None, [], "", np.empty(0, np.int32)])
def test_from_nothing(empty: Any) -> None:
    model = fresh("bytes", vocab_size=259)
    expected = model.generate(max_tokens=5, stop_at_end=False)
    assert len(expected) == 5
    assert np.array_equal(model.generate(empty, max_tokens=5, stop_at_end=False), expected)


def test_a_prompt_matters_and_may_be_of_any_length() -> None:
    model, greedy = fresh(), SamplingConfig(temperature=0.0)
    seen = set()
    for length in (0, 1, 4, 5, 10, 11, 12, 50):
        prompt = np.arange(length) % 13
        ids = model.generate(prompt, max_tokens=3, sampling=greedy, stop_at_end=False)
        assert np.array_equal(ids, model.generate(prompt.tolist(), max_tokens=3, sampling=greedy, stop_at_end=False))
        seen.add(tuple(ids.tolist()))
    assert len(seen) > 2


def test_the_start_token_is_in_front_and_ids_are_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    def decode(model: Any, prompt: list[int], **options: Any) -> Any:
        given.append((prompt, options))
        return iter([3, 15])

    monkeypatch.setattr(module, "decode", decode)
    sampling = SamplingConfig(top_k=3)
    assert fresh().generate([0, 12], max_tokens=7, sampling=sampling, num_latents=2, stop_at_end=False).tolist() == [
        0,
        12,
    ]
    prompt, options = given[0]
    assert prompt == [2, 3, 15]
    assert (options["sampling"], options["num_latents"], options["stop_at_eos"]) == (sampling, 2, False)


def test_text_prompts_bytes() -> None:
    model = fresh("bytes", vocab_size=259)
    text = "h\u00e9"
    expected = model.generate(list(text.encode()), max_tokens=5)
    assert np.array_equal(model.generate(text, max_tokens=5), expected)


def test_text_is_for_models_of_bytes() -> None:
    with pytest.raises(ValueError, match="a text prompt needs a model of bytes; this one reads 'ids' tokens"):
        fresh().generate("abc", max_tokens=1)


@pytest.mark.parametrize("bad", [13, -1])
def test_ids_that_the_model_does_not_know(bad: int) -> None:
    with pytest.raises(ValueError, match=rf"the prompt holds id {bad}; 'ids' ids of this model are 0\.\.12"):
        fresh().generate([3, bad], max_tokens=1)


def test_saved_and_loaded_it_goes_on_alike(tmp_path: Path) -> None:
    before = fresh()
    before.save_pretrained(tmp_path / "a" / "b")
    after = load(tmp_path / "a" / "b")
    assert isinstance(after, Loaded)
    assert (after.config, after.tokenizer) == (before.config, "ids")
    assert not after.model.training
    assert np.array_equal(before.generate([7], max_tokens=9), after.generate([7], max_tokens=9))
    assert np.array_equal(
        after.generate([7], max_tokens=9), perceivers.load(str(tmp_path / "a" / "b")).generate([7], max_tokens=9)
    )


def test_what_can_not_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        load(tmp_path)
    fresh().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="device 'nowhere' can't be used here"):
        load(tmp_path, device="nowhere")


def test_pushed_is_what_would_be_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed: dict[str, Any] = {}

    def upload(directory: Path, repo_id: str, *, private: bool, token: str | None) -> str:
        pushed.update({file.name: file.read_bytes() for file in directory.iterdir()}, to=(repo_id, private, token))
        return "address"

    monkeypatch.setattr(module, "upload_model", upload)
    model = fresh()
    assert model.push_to_hub("owner/name", private=True) == "address"
    model.save_pretrained(tmp_path)
    assert pushed == {"to": ("owner/name", True, None), **{file.name: file.read_bytes() for file in tmp_path.iterdir()}}
