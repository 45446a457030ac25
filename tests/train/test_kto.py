"""KTO: the paper's loss, its estimate of the divergence, and that no reply is ever paired with its own prompt."""

from __future__ import annotations

import random
from dataclasses import replace
from math import exp
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spiritlevel.data import Feedback, Preference, as_feedback
from spiritlevel.errors import SpiritLevelError
from spiritlevel.models import Fork, ForkScores, LocalModel, open_local, score_forks
from spiritlevel.store import ContentStore
from spiritlevel.train import KTO, Example, LoraSettings, TrainConfig, Window, add_lora, prepare_examples, train
from spiritlevel.train.objectives import kto_loss
from tiny import build_model

THUMBS = [Feedback.of(f"hello {n % 3}", f"the {n} one", n % 3 != 0) for n in range(7)]
number = st.floats(-40, 40)


@given(number, st.booleans(), st.floats(0, 20), st.floats(0.01, 2))
def test_the_loss_is_one_less_the_value_of_the_paper(ratio: float, good: bool, kl: float, beta: float) -> None:
    found = kto_loss(torch.tensor([ratio], dtype=torch.float64), torch.tensor([good]), kl, beta=beta)
    gain = beta * (ratio - kl) if good else beta * (kl - ratio)
    assert float(found) == pytest.approx(1 - 1 / (1 + exp(-gain)), abs=1e-12)


def test_the_weights_tell_good_from_bad() -> None:
    scores = ForkScores(torch.tensor([-1.0, -1.0], dtype=torch.float64), torch.arange(2), 2)
    examples = [Example(Fork((1,), ((2,),)), (-1.0, -1.0), kind=kind) for kind in ("desirable", "undesirable")]
    loss, _ = KTO(beta=0.1, desirable_weight=1.0, undesirable_weight=3.0).loss(scores, examples, Window(2, 2))
    assert float(loss) == pytest.approx((0.5 * 1 + 0.5 * 3) / 2)


def test_at_the_reference_the_divergence_is_nil_and_the_loss_one_half(tmp_path: Path) -> None:
    model = build_model()
    examples = prepare_examples(_kept(model, tmp_path), KTO(), THUMBS, store=ContentStore(tmp_path / "store"))
    student = open_local(str(tmp_path / "tiny"), dtype="float64")
    window = KTO().window(student, examples)
    loss, metrics = KTO().loss(student.score([example.fork for example in examples]), examples, window)
    assert window.kl == pytest.approx(0, abs=1e-6)
    assert float(loss.detach()) == pytest.approx(0.5, abs=1e-6)
    assert float(metrics["reward_desirable"]) == pytest.approx(0, abs=1e-6)


def test_the_divergence_is_the_mean_log_ratio_of_other_prompts_replies(tmp_path: Path) -> None:
    reference = _kept(build_model(), tmp_path)
    examples = prepare_examples(reference, KTO(), THUMBS, store=ContentStore(tmp_path / "store"))
    policy = build_model(seed=1)
    ratios = []
    for example in examples:
        assert example.question is not None
        other = Fork(example.fork.prompt, example.question.continuations[1:])
        [[now]], [[then]] = (
            score_forks(model.model, [other], pad_token=0, token_budget=1000) for model in (policy, reference)
        )
        ratios.append(now - then)
    expected = max(0.0, sum(ratios) / len(ratios))
    assert KTO().window(policy, examples).kl == pytest.approx(expected, abs=1e-4)
    flipped = [replace(example, reference=(0.0, 0.0)) for example in examples]  # far below: a negative estimate
    assert KTO().window(policy, flipped).kl == 0


@given(st.lists(st.integers(0, 4), min_size=2, max_size=40).filter(lambda p: len(set(p)) > 1), st.integers(0, 3))
def test_no_reply_meets_its_own_prompt_however_the_data_are_ordered(prompts: list[int], seed: int) -> None:
    model = build_model()
    records = [Feedback.of(f"p{prompt}", f"r{place}", True) for place, prompt in enumerate(prompts)]
    own: dict[tuple[int, ...], set[tuple[int, ...]]] = {}
    examples = KTO(seed=seed).examples(records, model)
    for example in examples:
        own.setdefault(example.fork.prompt, set()).add(example.fork.continuations[0])
    for example in examples:
        assert example.question is not None
        mine, other = example.question.continuations
        assert (mine,) == example.fork.continuations
        assert other not in own[example.fork.prompt]


def test_one_prompt_alone_is_an_error() -> None:
    with pytest.raises(SpiritLevelError, match="at least two different prompts"):
        KTO().examples([Feedback.of("a", "b", True), Feedback.of("a", "c", False)], build_model())


def test_a_pair_is_a_good_reply_and_a_bad_one() -> None:
    pair = Preference.of("hello", "the one", "in", rejected_finished=False, rule="r")
    good, bad = as_feedback(pair)
    assert (good.reply, good.label, good.finished, good.rule) == ("the one", True, True, "r")
    assert (bad.reply, bad.label, bad.finished, bad.rule) == ("in", False, False, "r")


def test_good_replies_rise_and_bad_ones_fall(tmp_path: Path) -> None:
    draw = random.Random(0)
    thumbs = [
        Feedback.of(f"hello {n}", "".join(draw.sample("abcdefgh", 5)), good) for n in range(6) for good in (True, False)
    ]
    base = _kept(build_model(dtype=torch.float32), tmp_path)
    examples = prepare_examples(base, KTO(), thumbs, store=ContentStore(tmp_path / "store"))
    student = add_lora(base, LoraSettings(8, 16), seed=0)
    config = TrainConfig(learning_rate=5e-3, epochs=20, batch_size=6, token_budget=100)
    history = train(student, KTO(), examples, config, tmp_path / "train")
    assert history[0]["loss"] == pytest.approx(0.5, abs=1e-3)
    for example in examples:
        [[now]] = student.score_all([example.fork])
        assert (now > example.reference[0]) == (example.kind == "desirable")


def _kept(model: LocalModel, folder: Path) -> LocalModel:
    """The model as one that was loaded from files, which have a digest."""
    model.model.save_pretrained(folder / "tiny")
    model.tokenizer.save_pretrained(folder / "tiny")
    return open_local(str(folder / "tiny"), dtype=str(model.dtype).removeprefix("torch."))
