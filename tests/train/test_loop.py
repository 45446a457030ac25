"""The training loop: the same step however it is cut, the same weights however often it is killed."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil, inf, isnan, nan
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import MistralConfig, MistralForCausalLM

from small_disk import fill, small_disk
from spiritlevel.chat import user
from spiritlevel.data import Preference
from spiritlevel.errors import SpiritLevelError
from spiritlevel.models import Fork, ForkScores, LocalModel, open_local, score_forks
from spiritlevel.store import ContentStore, read_jsonl
from spiritlevel.train import (
    CPO,
    DPO,
    SFT,
    Example,
    LoraSettings,
    Objective,
    TrainConfig,
    Window,
    add_lora,
    prepare_examples,
    train,
    verify_rollouts,
)
from spiritlevel.train import prepare as prepare_module
from spiritlevel.train.batches import epoch_batches
from spiritlevel.train.objective import Metrics
from spiritlevel.train.optimizer import MasterAdamW
from spiritlevel.train.step import StepMetrics
from tiny import SIZES, build_gpt2, build_model, build_tokenizer, randomise, save_model

CONFIG = TrainConfig(learning_rate=1e-2, epochs=2, batch_size=4, token_budget=40, save_seconds=0)
PREFER = DPO(beta=0.1, nll_weight=0.5)
TIMING = {"tokens_per_second", "memory_gb", "seconds"}


def draw_examples(count: int, *, seed: int = 0) -> list[Example]:
    """Pairs of unequal lengths."""
    source = random.Random(seed)

    def tokens() -> tuple[int, ...]:
        return tuple(source.randrange(256) for _ in range(source.randint(1, 10)))

    return [Example(Fork(tokens(), (tokens(), tokens())), (-20.0, -20.0 - index)) for index in range(count)]


EXAMPLES = draw_examples(10)
CHOSEN = [Example(Fork(example.fork.prompt, example.fork.continuations[:1])) for example in EXAMPLES]


def student(
    *, lora: bool = True, alpha: int = 8, seed: int = 0, dtype: torch.dtype = torch.float64, dropout: float = 0.0
) -> LocalModel:
    base = build_model(seed=seed, dtype=dtype)
    for layer in base.model.model.layers:
        layer.self_attn.attention_dropout = dropout
    return add_lora(base, LoraSettings(4, alpha), seed=7) if lora else base


def weights(model: LocalModel) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.model.named_parameters()}


def equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def untimed(history: list[StepMetrics]) -> list[StepMetrics]:
    return [{name: value for name, value in row.items() if name not in TIMING} for row in history]


def kill_at(step: int) -> Callable[[StepMetrics], None]:
    def on_step(metrics: StepMetrics) -> None:
        if metrics["step"] == step:
            raise KeyboardInterrupt

    return on_step


@pytest.fixture
def gradients(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[Tensor]]]:
    """The gradients of every step, as the optimiser got them."""
    seen: list[list[Tensor]] = []
    step = MasterAdamW.step

    def recording(self: MasterAdamW, *args: float) -> float:
        seen.append([parameter.grad.clone() for parameter in self.parameters])
        return step(self, *args)

    monkeypatch.setattr(MasterAdamW, "step", recording)
    yield seen


# --- one step ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("objective", "examples"), [(PREFER, EXAMPLES), (SFT(), CHOSEN)], ids=["dpo", "sft"])
def test_a_step_is_the_same_however_it_is_cut(
    objective: Objective, examples: list[Example], tmp_path: Path, gradients: list[list[Tensor]]
) -> None:
    histories = []
    for budget in (100_000, 60, 30, 1):
        config = replace(CONFIG, batch_size=len(examples), epochs=1, token_budget=budget)
        model = student(lora=False)
        histories.append(train(model, objective, examples, config, tmp_path / str(budget)))
    whole, *parts = gradients
    for part in parts:
        for found, expected in zip(part, whole, strict=True):
            assert float((found - expected).norm()) <= 1e-12 * max(1.0, float(expected.norm()))
    for [row] in histories:
        expected_row = histories[0][0]
        assert row.keys() == expected_row.keys()
        for name in row.keys() - TIMING:
            assert row[name] == pytest.approx(expected_row[name], rel=1e-12), name


def test_the_loss_of_sft_is_that_of_masked_labels_over_the_whole_step(tmp_path: Path) -> None:
    config = replace(CONFIG, batch_size=len(CHOSEN), epochs=1, token_budget=25)
    total, count = 0.0, 0
    for example in CHOSEN:
        [reply] = example.fork.continuations
        labels = torch.tensor([[*[-100] * len(example.fork.prompt), *reply]])
        ids = torch.tensor([[*example.fork.prompt, *reply]])
        with torch.no_grad():
            total += float(student().model(input_ids=ids, labels=labels).loss) * len(reply)
        count += len(reply)
    [row] = train(student(), SFT(), CHOSEN, config, tmp_path)
    assert row["loss"] == pytest.approx(total / count, rel=1e-6)


def test_the_metrics_say_where_training_is(tmp_path: Path) -> None:
    told: list[StepMetrics] = []
    history = train(student(), PREFER, EXAMPLES, CONFIG, tmp_path, on_step=told.append)
    steps = CONFIG.epochs * ceil(len(EXAMPLES) / CONFIG.batch_size)
    assert told == history
    assert [row["step"] for row in history] == list(range(1, steps + 1))
    assert {row["steps"] for row in history} == {steps}
    assert history[-1]["epoch"] == CONFIG.epochs
    assert [row for _, row in read_jsonl(tmp_path / "metrics.jsonl")] == history
    assert all(row["tokens_per_second"] > 0 and row["memory_gb"] > 0 for row in history)


def test_every_epoch_sees_all_examples_in_an_order_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    loss = DPO.loss

    def recording(self: DPO, scores: Any, examples: list[Example], window: Any) -> Any:
        seen.extend(EXAMPLES.index(example) for example in examples)
        return loss(self, scores, examples, window)

    monkeypatch.setattr(DPO, "loss", recording)
    train(student(), PREFER, EXAMPLES, CONFIG, tmp_path)
    first, second = seen[: len(EXAMPLES)], seen[len(EXAMPLES) :]
    assert sorted(first) == sorted(second) == list(range(len(EXAMPLES)))
    assert first != second


def test_training_leaves_the_frozen_weights_and_ends_in_eval_mode(tmp_path: Path) -> None:
    model = student()
    before = weights(model)
    train(model, PREFER, EXAMPLES, CONFIG, tmp_path)
    after = weights(model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name, p in model.model.named_parameters() if p.requires_grad}
    assert not model.model.training


# --- kill and resume ---------------------------------------------------------------------------------

SETTINGS = {
    "lora-float64": {"lora": True},
    "full-float32": {"lora": False, "dtype": torch.float32},
    "full-bfloat16": {"lora": False, "dtype": torch.bfloat16},
    "dropout": {"dropout": 0.3},
}


@pytest.mark.parametrize("kills", [(1,), (2,), (4,), (6,), (2, 3, 3, 5)], ids=str)
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_killed_run_ends_as_one_that_was_not(setting: str, kills: tuple[int, ...], tmp_path: Path) -> None:
    straight = student(**SETTINGS[setting])
    expected = train(straight, PREFER, EXAMPLES, CONFIG, tmp_path / "straight")
    assert len(expected) == 6

    for step in kills:
        with pytest.raises(KeyboardInterrupt):
            train(student(**SETTINGS[setting]), PREFER, EXAMPLES, CONFIG, tmp_path, on_step=kill_at(step))
    resumed, told = student(**SETTINGS[setting]), []
    history = train(resumed, PREFER, EXAMPLES, CONFIG, tmp_path, on_step=told.append)
    assert [row["step"] for row in told] == list(range(max(kills), 7)), "it went on where it stopped"
    assert untimed(history) == untimed(expected)
    assert equal(weights(resumed), weights(straight))


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    first, second, told = student(), student(), []
    history = train(first, PREFER, EXAMPLES, CONFIG, tmp_path)
    assert train(second, PREFER, EXAMPLES, CONFIG, tmp_path, on_step=told.append) == history
    assert told == []
    assert equal(weights(first), weights(second))


def test_between_checkpoints_nothing_is_written(tmp_path: Path) -> None:
    slow = replace(CONFIG, save_seconds=1e9)
    with pytest.raises(KeyboardInterrupt):
        train(student(), PREFER, EXAMPLES, slow, tmp_path, on_step=kill_at(6))
    assert not list(tmp_path.iterdir())
    train(student(), PREFER, EXAMPLES, slow, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.pt", "metrics.jsonl"]


OTHERS: dict[str, dict[str, Any]] = {
    "data": {"examples": draw_examples(10, seed=1)},
    "order of data": {"examples": EXAMPLES[::-1]},
    "reference": {"examples": [replace(example, reference=(-19.0, -21.0)) for example in EXAMPLES]},
    "beta": {"objective": DPO(beta=0.2, nll_weight=0.5)},
    "margin": {"objective": replace(PREFER, margin_tokens=1)},
    "method": {"objective": SFT(), "examples": CHOSEN},
    "learning rate": {"config": replace(CONFIG, learning_rate=2e-2)},
    "seed": {"config": replace(CONFIG, seed=1)},
    "epochs": {"config": replace(CONFIG, epochs=3)},
    "model": {"seed": 1},
    "scale of the adapter": {"alpha": 16},
    "full": {"lora": False},
}


@pytest.mark.parametrize("other", OTHERS)
def test_the_checkpoint_of_another_training_is_ignored(other: str, tmp_path: Path) -> None:
    usual: dict[str, Any] = {"objective": PREFER, "examples": EXAMPLES, "config": CONFIG}

    def run(folder: Path, objective: Any, examples: Any, config: Any, **model: Any) -> LocalModel:
        fresh = student(**model)
        train(fresh, objective, examples, config, folder)
        return fresh

    run(tmp_path / "used", **usual)
    found = run(tmp_path / "used", **usual | OTHERS[other])
    expected = run(tmp_path / "fresh", **usual | OTHERS[other])
    assert equal(weights(found), weights(expected))


@pytest.mark.parametrize("left", [0, 100, 0.5])
def test_a_damaged_checkpoint_is_an_error_that_names_it(left: float, tmp_path: Path) -> None:
    train(student(), PREFER, EXAMPLES, CONFIG, tmp_path)
    path = tmp_path / "checkpoint.pt"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(left * len(whole)) if isinstance(left, float) else left])
    with pytest.raises(SpiritLevelError, match="checkpoint is damaged") as told:
        train(student(), PREFER, EXAMPLES, CONFIG, tmp_path)
    assert told.value.where == str(path)


def test_only_the_time_between_checkpoints_may_differ(tmp_path: Path) -> None:
    told: list[StepMetrics] = []
    with pytest.raises(KeyboardInterrupt):
        train(student(), PREFER, EXAMPLES, CONFIG, tmp_path, on_step=kill_at(4))
    train(student(), PREFER, EXAMPLES, replace(CONFIG, save_seconds=9.0), tmp_path, on_step=told.append)
    assert [row["step"] for row in told] == [4, 5, 6]


def test_the_last_step_of_an_epoch_has_the_metrics_on_what_is_not_learnt_from(tmp_path: Path) -> None:
    held_out, model = draw_examples(5, seed=9), student()
    found: list[float] = []

    def look(metrics: StepMetrics) -> None:
        if "validation_loss" in metrics:
            with torch.no_grad():
                loss, _ = PREFER.loss(model.score([e.fork for e in held_out]), held_out, Window.over(held_out))
            assert metrics["validation_loss"] == pytest.approx(float(loss), abs=1e-9)
            assert 0 <= metrics["validation_accuracy"] <= 1
            found.append(metrics["epoch"])

    history = train(model, PREFER, EXAMPLES, CONFIG, tmp_path / "a", validation=held_out, on_step=look)
    assert found == [1.0, 2.0] and len(history) > 2
    alone = student()
    train(alone, PREFER, EXAMPLES, CONFIG, tmp_path / "b")
    assert equal(weights(model), weights(alone)), "and it changes nothing"


def test_a_step_that_is_not_finite_is_the_last_in_the_metrics(tmp_path: Path) -> None:
    poisoned = [replace(example, reference=(float("nan"), 0.0)) for example in EXAMPLES]
    with pytest.raises(SpiritLevelError, match="not a finite number at step 1"):
        train(student(), PREFER, poisoned, CONFIG, tmp_path)
    (row,) = (json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert isnan(row["loss"])


def test_nothing_is_dropped_out(tmp_path: Path) -> None:
    usual, dropping = student(), student()
    for layer in dropping.model.get_base_model().model.layers:
        layer.self_attn.attention_dropout = 0.5
    for model, folder in ((usual, "usual"), (dropping, "dropping")):
        train(model, PREFER, EXAMPLES, CONFIG, tmp_path / folder)
    assert equal(weights(usual), weights(dropping))


def test_a_frozen_base_is_part_of_what_a_checkpoint_belongs_to(tmp_path: Path) -> None:
    # The adapters start alike and SFT has no reference: only the base tells these two apart.
    train(student(seed=0), SFT(), CHOSEN, CONFIG, tmp_path / "used")
    found, expected = student(seed=1), student(seed=1)
    train(found, SFT(), CHOSEN, CONFIG, tmp_path / "used")
    train(expected, SFT(), CHOSEN, CONFIG, tmp_path / "fresh")
    assert equal(weights(found), weights(expected))


def test_a_full_disk_stops_training_and_once_it_is_freed_training_goes_on(tmp_path: Path) -> None:
    expected = student()
    history = train(expected, PREFER, EXAMPLES, CONFIG, tmp_path / "whole")
    with small_disk(tmp_path / "disk") as disk:

        def fill_at_3(metrics: StepMetrics) -> None:
            if metrics["step"] == 3:
                fill(disk, but=20_000)  # enough for the metrics

        with pytest.raises(SpiritLevelError, match="disk is full") as told:
            train(student(), PREFER, EXAMPLES, CONFIG, disk, on_step=fill_at_3)
        assert told.value.where == str(disk / "checkpoint.pt")
        assert sorted(path.name for path in disk.iterdir()) == ["checkpoint.pt", "filler", "metrics.jsonl"]
        (disk / "filler").unlink()
        found, steps = student(), []
        assert untimed(train(found, PREFER, EXAMPLES, CONFIG, disk, on_step=steps.append)) == untimed(history)
        assert steps[0]["step"] == 3
        assert equal(weights(found), weights(expected))


# --- what is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", 0.0),
        ("learning_rate", -1e-3),
        ("learning_rate", nan),
        ("learning_rate", inf),
        ("epochs", 0),
        ("epochs", -1),
        ("batch_size", 0),
        ("warmup", 1.1),
        ("warmup", -0.1),
        ("weight_decay", -0.1),
        ("max_grad_norm", 0.0),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(SpiritLevelError, match=rf"{name} is {value}") as told:
        replace(CONFIG, **{name: value})
    assert told.value.remedy


def test_an_example_that_is_too_long_is_an_error_with_counts(tmp_path: Path) -> None:
    lengths = [example.fork.length for example in EXAMPLES]
    limit = sorted(lengths)[-3]
    count = sum(length > limit for length in lengths)
    with pytest.raises(SpiritLevelError, match=rf"{count} of 10 examples .* {limit} tokens .*{max(lengths)}"):
        train(student(), PREFER, EXAMPLES, replace(CONFIG, max_length=limit), tmp_path)
    train(student(), PREFER, EXAMPLES, replace(CONFIG, max_length=max(lengths), epochs=1), tmp_path)


def test_no_examples_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(SpiritLevelError, match="nothing to train on"):
        train(student(), PREFER, [], CONFIG, tmp_path)


@pytest.mark.parametrize("poison", [nan, inf])
def test_a_loss_that_is_not_finite_is_an_error_and_what_was_learnt_is_kept(poison: float, tmp_path: Path) -> None:
    examples = [*EXAMPLES, replace(EXAMPLES[0], reference=(poison, 0.0))]
    model, steps = student(), []
    with pytest.raises(SpiritLevelError, match=r"the loss is not a finite number at step [1-6]"):
        train(model, PREFER, examples, CONFIG, tmp_path, on_step=steps.append)
    assert all(torch.isfinite(weight).all() for weight in weights(model).values())
    if steps:
        state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
        assert json.loads(state["history"]) == steps


@dataclass(frozen=True)
class Cliff(DPO):
    """A finite loss with a gradient that is none: d√x/dx at 0."""

    def loss(self, scores: ForkScores, examples: Sequence[Example], window: Window) -> tuple[Tensor, Metrics]:
        loss, metrics = super().loss(scores, examples, window)
        return loss + (0 * scores.logprobs.sum()).sqrt(), metrics


def test_a_gradient_that_is_not_finite_is_an_error_and_changes_nothing(tmp_path: Path) -> None:
    model = student()
    before = weights(model)
    with pytest.raises(SpiritLevelError, match="the gradient is not a finite number at step 1"):
        train(model, Cliff(beta=0.1), EXAMPLES, CONFIG, tmp_path)
    assert equal(weights(model), before)
    assert not (tmp_path / "checkpoint.pt").exists()


# --- preparing examples ------------------------------------------------------------------------------

RECORDS = [
    Preference.of("hello", "the one", "in the user"),
    Preference.of("hello" * 4, "on", "user user user"),
    Preference.of("the", "a", "b", rejected_finished=False),
]


@pytest.mark.parametrize("margin_tokens", [None, 2])
def test_references_are_the_models_own_scores_and_are_kept(
    margin_tokens: int | None, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, store = open_local(str(tiny_folder), dtype="float64"), ContentStore(tmp_path / "store")
    objective = replace(PREFER, margin_tokens=margin_tokens)
    examples = prepare_examples(model, objective, RECORDS, store=store, token_budget=60)
    assert [example.fork for example in examples] == [objective.fork(record, model) for record in RECORDS]
    for example, record in zip(examples, RECORDS, strict=True):
        whole = PREFER.fork(record, model)
        assert example.fork.continuations[0] == whole.continuations[0], "the NLL term reads the whole chosen reply"
        judged = Fork(whole.prompt, tuple(reply[:margin_tokens] for reply in whole.continuations))
        assert example.fork.continuations[1] == judged.continuations[1]
        [alone] = score_forks(model.model, [judged], pad_token=0, token_budget=1000)
        assert example.reference == pytest.approx(alone, abs=1e-5)  # a loaded model's norms are float32

    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("scored again")

    monkeypatch.setattr(prepare_module, "score_forks", forbidden)
    told: list[int] = []
    again = prepare_examples(model, objective, RECORDS, store=store, token_budget=60, on_progress=told.append)
    assert again == examples
    assert sum(told) == len(RECORDS)


def test_another_model_gets_references_of_its_own(tmp_path: Path) -> None:
    store = ContentStore(tmp_path / "store")
    folders = [save_model(tmp_path / str(seed), seed=seed) for seed in (0, 1)]
    first, second = (
        prepare_examples(open_local(str(folder), dtype="float64"), PREFER, RECORDS, store=store) for folder in folders
    )
    assert [example.reference for example in first] != [example.reference for example in second]


def test_what_needs_no_reference_gets_none(tmp_path: Path, tiny_model: LocalModel) -> None:
    examples = prepare_examples(tiny_model, SFT(), RECORDS, store=ContentStore(tmp_path))
    assert examples == [Example(SFT().fork(record, tiny_model), kind=record.source) for record in RECORDS]
    assert not list(tmp_path.iterdir())


def windowed(window: int) -> LocalModel:
    tokenizer = build_tokenizer()
    config = MistralConfig(**SIZES | {"vocab_size": len(tokenizer)}, sliding_window=window)
    return LocalModel(randomise(MistralForCausalLM(config), seed=0), tokenizer, name="windowed")


def test_a_model_the_engine_does_not_know_is_refused_by_its_longest_example(tmp_path: Path) -> None:
    model = windowed(60)
    short, long = Preference.of("a", "b", "c"), Preference.of("a " * 60, "b", "c")
    prepare_examples(model, SFT(), [short], store=ContentStore(tmp_path))
    with pytest.raises(SpiritLevelError, match="not supported yet"):
        prepare_examples(model, SFT(), [short, long], store=ContentStore(tmp_path))


def test_the_longest_example_is_the_one_that_reaches_furthest(tmp_path: Path) -> None:
    model, objective = windowed(64), CPO(beta=0.1)
    broad, deep = Preference.of("a", "z" * 36, "y" * 36), Preference.of("a", "z" * 60, "y")
    forks = [objective.fork(record, model) for record in (broad, deep)]
    assert forks[0].reach <= 64 < forks[1].reach and forks[0].length > forks[1].length
    prepare_examples(model, objective, [broad], store=ContentStore(tmp_path))
    with pytest.raises(SpiritLevelError, match="not supported yet"):
        prepare_examples(model, objective, [broad, deep], store=ContentStore(tmp_path))


def test_a_model_the_engine_does_not_know_is_refused_by_its_longest_rollout() -> None:
    model, chats = windowed(64), [[user("a")], [user("hello")]]
    verify_rollouts(model, chats, max_new_tokens=1)
    verify_rollouts(model, chats, max_new_tokens=20)
    with pytest.raises(SpiritLevelError, match="not supported yet"):
        verify_rollouts(model, chats, max_new_tokens=64)


def test_an_example_or_rollout_beyond_the_models_context_is_told(tmp_path: Path) -> None:
    model, store = build_gpt2(context=64), ContentStore(tmp_path)
    prompt = len(model.prompt_tokens([user("a")]))
    fits, exceeds = (Preference.of("a", "z" * (64 - prompt - 1 + more), "y") for more in (0, 1))
    prepare_examples(model, SFT(), [fits], store=store)
    expected = r"gpt2: 1 of 2 examples exceed the model's context of 64 tokens \(the longest has 65\)"
    with pytest.raises(SpiritLevelError, match=expected):
        prepare_examples(model, SFT(), [fits, exceeds], store=store)
    verify_rollouts(model, [[user("a")]], max_new_tokens=64 - prompt)
    with pytest.raises(SpiritLevelError, match="1 of 1 prompts with 64 new tokens exceed the model's context of 64"):
        verify_rollouts(model, [[user("a")]], max_new_tokens=64)


# --- it learns ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_a_planted_preference_is_learnt(lora: bool, tiny_folder: Path, tmp_path: Path) -> None:
    replies = random.Random(0)

    def reply() -> str:
        return "".join(replies.sample("abcdefgh", 6))

    records = [Preference.of(f"hello {n}", reply(), reply()) for n in range(8)]
    model = open_local(str(tiny_folder), dtype="float32")
    examples = prepare_examples(model, DPO(beta=0.1), records, store=ContentStore(tmp_path / "store"))
    if lora:
        model = add_lora(model, LoraSettings(8, 16), seed=0)
    config = TrainConfig(learning_rate=5e-3, epochs=30, batch_size=8)
    history = train(model, DPO(beta=0.1), examples, config, tmp_path)
    assert history[0]["loss"] == pytest.approx(0.693147, abs=1e-4)
    assert history[-1]["accuracy"] == 1.0
    forks = [example.fork for example in examples]
    scores = score_forks(model.model, forks, pad_token=model.pad_token, token_budget=1000)
    assert all(chosen > rejected for chosen, rejected in scores)


# --- batches -----------------------------------------------------------------------------------------

kinds_of = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=80)


@given(kinds_of, st.integers(1, 9), st.integers(0, 5), st.integers(0, 5))
def test_an_epoch_sees_every_example_once(kinds: list[str], batch_size: int, seed: int, epoch: int) -> None:
    batches = epoch_batches(kinds, batch_size, seed=seed, epoch=epoch)
    assert sorted(index for batch in batches for index in batch) == list(range(len(kinds)))
    assert len(batches) == ceil(len(kinds) / batch_size)
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert batches == epoch_batches(kinds, batch_size, seed=seed, epoch=epoch)


def test_epochs_and_seeds_differ() -> None:
    draws = [(seed, epoch) for seed in range(3) for epoch in range(3)]
    orders = {str(epoch_batches([""] * 32, 4, seed=seed, epoch=epoch)) for seed, epoch in draws}
    assert len(orders) == 9


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 99))
def test_every_batch_has_about_its_share_of_each_kind(helped: int, declined: int, seed: int) -> None:
    kinds = ["help"] * helped + ["decline"] * declined
    for batch in epoch_batches(kinds, 4, seed=seed, epoch=0):
        share = len(batch) * helped / len(kinds)
        assert abs(sum(kinds[index] == "help" for index in batch) - share) < 2


def test_two_kinds_alike_take_turns() -> None:
    batches = epoch_batches(["help", "decline"] * 50, 4, seed=3, epoch=0)
    assert all(sum(index % 2 for index in batch) == 2 for batch in batches)
