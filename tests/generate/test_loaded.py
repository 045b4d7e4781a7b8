from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import perceivers
from perceivers import hub
from perceivers.data.batch import EOS
from perceivers.generate import loaded as module
from perceivers.generate.config import DecodingConfig, SamplingConfig
from perceivers.generate.decode import Step
from perceivers.generate.loaded import Continuation, Loaded, _until, load
from perceivers.models.build import build
from perceivers.models.perceiver_ar_config import PerceiverARConfig

from ..faults import faulty

PROMPTS = [None, [3, 5], np.array([7, 0, 12, 1, 4]), np.arange(40) % 13]


def fresh(tokenizer: str = "ids", *, vocab_size: int = 16, end: float = 0.0) -> Loaded:
    """A model whose pieces end the sooner the higher `end` is."""
    torch.manual_seed(0)
    config = PerceiverARConfig(
        vocab_size=vocab_size, max_seq_len=11, num_latents=5, dim=14, depth=1, heads=7, cross_heads=2, zero_logits=False
    )
    model = build(config)
    with torch.no_grad():
        model.logits.bias[EOS] += end  # pyright: ignore
    return Loaded(model, tokenizer)


def test_raw_ids_are_in_range() -> None:
    """At this temperature all ids are about as likely."""
    ids = fresh().generate(max_tokens=120, sampling=SamplingConfig(temperature=100.0), stop_at_end=False)
    assert ids.dtype == np.int32
    assert len(ids) == 120
    assert set(ids.tolist()) == set(range(13))


def test_a_stream_is_what_generate_returns() -> None:
    model = fresh()
    assert list(model.stream([3, 5], max_tokens=7)) == model.generate([3, 5], max_tokens=7).tolist()


def test_many_at_once_are_each_alone() -> None:
    """Prompt by prompt, the j-th sample of each with seed + j; some end before others."""
    model = fresh(end=1.0)
    many = model.generate_many(PROMPTS, max_tokens=17, samples=3, sampling=SamplingConfig(seed=5))
    seeds = [SamplingConfig(seed=seed) for seed in (5, 6, 7)]
    alone = [model.generate(prompt, max_tokens=17, sampling=seed) for prompt in PROMPTS for seed in seeds]
    assert [row.ids.tolist() for row in many] == [ids.tolist() for ids in alone]
    assert len({len(row.ids) for row in many}) > 2
    for row in many:
        assert (row.ids.dtype, row.log_probs.dtype) == (np.int32, np.float64)
        assert row.ids.shape == row.log_probs.shape
        assert (row.log_probs < 0).all()


def test_arrays_may_be_of_different_lengths() -> None:
    """Often, because checked annotations look at one of them by chance."""
    model, prompts = fresh(), [np.arange(length) for length in range(1, 12)]
    for _ in range(20):
        assert len(model.generate_many(prompts, max_tokens=0)) == 11


def test_steps_are_rows_of_the_same_tokens() -> None:
    model = fresh(end=1.0)
    steps = list(model.steps(PROMPTS, max_tokens=17, samples=2))
    many = model.generate_many(PROMPTS, max_tokens=17, samples=2)
    assert len(steps) == max(len(row.ids) for row in many)
    assert all(len(step.tokens) == len(step.log_probs) == 8 for step in steps)
    for index, row in enumerate(many):
        tokens = [step.tokens[index] for step in steps]
        padding = len(steps) - len(row.ids)
        assert tokens == [*row.ids.tolist(), *[None] * padding]
        assert [step.log_probs[index] for step in steps] == [*row.log_probs.tolist(), *[0.0] * padding]


def test_log_probs_are_the_models_own() -> None:
    model = fresh()
    sampling = SamplingConfig(temperature=0.5)
    [row] = model.generate_many([[3, 5]], max_tokens=4, sampling=sampling, decoding=DecodingConfig(cached=False))
    tokens = torch.tensor([[2, 6, 8, *(row.ids + 3)]])
    for length in range(3, 7):
        positions = torch.arange(1, length + 1)[None, :, None]
        with torch.no_grad():
            logits = model.model(tokens[:, :length], positions=positions, num_latents=min(length, 5))[0, -1]
        expected = float(logits.log_softmax(-1)[tokens[0, length]])
        assert row.log_probs[length - 3] == pytest.approx(expected, abs=1e-5)


def test_a_row_that_ends_at_once() -> None:
    [nothing] = fresh(end=100.0).generate_many([[3]], max_tokens=7)
    assert (nothing.ids.shape, nothing.log_probs.shape) == ((0,), (0,))
    assert (nothing.ids.dtype, nothing.log_probs.dtype) == (np.int32, np.float64)
    assert len(fresh(end=100.0).generate([3], max_tokens=7)) == 0


def test_a_continuation_is_one_row_up_to_its_end() -> None:
    steps = [Step([4, 7], [-0.5, -1.5]), Step([None, 0], [0.0, -2.5])]
    first, second = (Continuation.of_row(steps, row) for row in (0, 1))
    assert (first.ids.tolist(), first.log_probs.tolist()) == ([4], [-0.5])
    assert (second.ids.tolist(), second.log_probs.tolist()) == ([7, 0], [-1.5, -2.5])


def test_the_end_can_be_left_out() -> None:
    model = fresh(end=100.0)
    assert len(model.generate(max_tokens=3, stop_at_end=False)) == 3
    assert len(list(model.stream(max_tokens=3, stop_at_end=False))) == 3
    assert [len(row.ids) for row in model.generate_many([None, [1]], max_tokens=3, stop_at_end=False)] == [3, 3]


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

    def decode(model: Any, prompts: list[list[int]], **options: Any) -> Iterator[Step]:
        given.append((prompts, options))
        others = len(prompts) * options["samples"] - 1
        return iter([Step([token, *[None] * others], [-token / 3, *[0.0] * others]) for token in (3, 15)])

    def constraint() -> Any: ...

    monkeypatch.setattr(module, "decode", decode)
    asked: dict[str, Any] = {"max_tokens": 7, "sampling": SamplingConfig(top_k=3), "decoding": DecodingConfig(refill=2)}
    expected = {**asked, "samples": 1, "stop_at_eos": False, "constraint": constraint, "positions": None}
    model, prompt, options = fresh(), [0, 12], {**asked, "stop_at_end": False, "constraint": constraint}
    assert model.generate(prompt, **options).tolist() == [0, 12]
    assert list(model.stream(prompt, **options)) == [0, 12]
    assert [step.tokens for step in model.steps([prompt], **options)] == [[0], [12]]
    [row] = model.generate_many([prompt], **options)
    assert (row.ids.tolist(), row.log_probs.tolist()) == ([0, 12], [-1.0, -5.0])
    assert given == [([[2, 3, 15]], expected)] * 4
    many = model.generate_many([prompt, None], samples=5, **options)
    assert [row.ids.tolist() for row in many] == [[0, 12], *[[]] * 9]
    assert given[-1] == ([[2, 3, 15], [2]], {**expected, "samples": 5})


def test_music_ends_with_the_event_that_reaches_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row for itself; nothing is drawn when all have."""
    a_tenth, key = 259 + 9, 3 + 60
    rows = [
        [a_tenth] * 7,
        [key, a_tenth, a_tenth, key, 259 + 99, key, key],
        [a_tenth, None, None, None, None, None, None],
    ]
    taken: list[int] = []

    def decode(*_: Any, **__: Any) -> Iterator[Step]:
        for step in range(7):
            taken.append(step)
            tokens = [row[step] for row in rows]
            yield Step(tokens, [0.0 if token is None else -1.0 - step for token in tokens])

    monkeypatch.setattr(module, "decode", decode)
    model = fresh("performance", vocab_size=391)
    many = model.generate_many([None] * 3, max_tokens=7, seconds=0.295)
    assert [row.ids.tolist() for row in many] == [[265] * 3, [60, 265, 265, 60, 355], [265]]
    assert [row.log_probs.tolist() for row in many] == [[-1.0, -2.0, -3.0], [-1.0, -2.0, -3.0, -4.0, -5.0], [-1.0]]
    assert taken == [0, 1, 2, 3, 4]
    last = list(model.steps([None] * 3, max_tokens=7, seconds=0.295))[-1]
    assert (last.tokens, last.log_probs) == ([None, 355, None], [0.0, -5.0, 0.0])


def test_no_step_is_empty_when_the_others_have_reached_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [Step([259 + 9, 3], [-1.0, -1.0]), Step([3, None], [-1.0, 0.0])]
    monkeypatch.setattr(module, "decode", lambda *_, **__: iter(steps))
    done = list(fresh("performance", vocab_size=391).steps([None] * 2, max_tokens=7, seconds=0.1))
    assert [step.tokens for step in done] == [[265, 0]]


def test_real_music_ends_at_the_time() -> None:
    model = fresh("performance", vocab_size=391)
    rows = model.generate_many([None, [60, 280]], max_tokens=50, samples=2, seconds=0.7, stop_at_end=False)
    for row in rows:
        time_s = np.cumsum([(event - 255) / 100 if 256 <= event < 356 else 0.0 for event in row.ids.tolist()])
        assert (time_s[:-1] < 0.7).all()
        assert time_s[-1] >= 0.7
    assert model.generate(max_tokens=50, seconds=0.7, stop_at_end=False).tolist() == rows[0].ids.tolist()
    assert list(model.stream(max_tokens=50, seconds=0.7, stop_at_end=False)) == rows[0].ids.tolist()


@pytest.mark.parametrize(("shift", "count"), [(10, 10), (1, 100), (7, 15), (100, 1)])
def test_a_second_is_a_hundred_steps(shift: int, count: int) -> None:
    steps = (Step([255 + shift], [0.0]) for _ in range(200))
    assert len(list(_until(steps, 1.0))) == count


def test_seconds_are_for_music() -> None:
    for call in (fresh().generate, fresh().stream):
        with pytest.raises(ValueError, match=r"seconds=1\.5 is for music, this model makes 'ids' tokens"):
            call(max_tokens=1, seconds=1.5)


@pytest.mark.parametrize("seconds", [float("nan"), -1, 0, "3"])
@pytest.mark.usefixtures("unchecked")
def test_no_music_is_of_no_length(seconds: Any) -> None:
    with pytest.raises(ValueError, match=r"^seconds=.* must be (a finite number|more than 0|a number, or None)$"):
        fresh("performance", vocab_size=391).generate(max_tokens=1, seconds=seconds)


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
    message = rf"the prompt holds id {bad}; 'ids' ids of this model are 0\.\.12"
    with pytest.raises(ValueError, match=message):
        fresh().generate([3, bad], max_tokens=1)
    with pytest.raises(ValueError, match=message):  # at the call, before a token is asked for
        fresh().stream([3, bad], max_tokens=1)
    with pytest.raises(ValueError, match=message):
        fresh().steps([[5], [3, bad]], max_tokens=1)


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


def test_a_module_without_a_config_is_not_saved(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 3)
    with pytest.raises(ValueError, match=r"this Linear has no config.*perceivers.build\(CONFIG\)"):
        Loaded(model).save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


# Saving in place of another model


@pytest.mark.parametrize("dies", [False, True])
def test_saved_over_another_model_one_of_them_opens(tmp_path: Path, dies: bool) -> None:
    """Vocabularies differ, so that a config beside the other's weights would not open."""
    small, large, other = (fresh(vocab_size=size) for size in (13, 16, 19))
    at, came = int(dies), True
    while came:
        small.save_pretrained(tmp_path)
        came = faulty(lambda: large.save_pretrained(tmp_path), at, dies=dies)
        assert load(tmp_path).sequence_config.vocab_size in ((13, 16) if came else (16,))
        other.save_pretrained(tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
        at += 5
    assert at > 10


def test_two_do_not_save_in_one_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = fresh(vocab_size=13), fresh(vocab_size=16)
    write, tried = hub.save_file, []

    def meanwhile(*args: Any) -> None:
        with pytest.raises(FileExistsError, match="another process is writing in this directory; wait for it, stop it"):
            second.save_pretrained(tmp_path)
        tried.append(args)
        write(*args)

    with monkeypatch.context() as patch:
        patch.setattr(hub, "save_file", meanwhile)
        first.save_pretrained(tmp_path)
    assert len(tried) == 1
    assert load(tmp_path).sequence_config.vocab_size == 13
    second.save_pretrained(tmp_path)
    assert load(tmp_path).sequence_config.vocab_size == 16
