"""The fork engine against plain arithmetic: one sequence at a time, whole logits, log_softmax, gather."""

from __future__ import annotations

import random
from functools import cache
from itertools import chain
from math import log
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import logsigmoid
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from spiritlevel.errors import SpiritLevelError
from spiritlevel.models import Fork, LocalModel, lay_out, score_batch, score_forks, scoring, verify_engine
from spiritlevel.models import fork as fork_module
from spiritlevel.models.scoring import LogitTransform, token_logprobs
from spiritlevel.train import DPO, Example, LoraSettings, Window, add_lora
from spiritlevel.train.objectives.pairwise import OPENING_TOKENS
from tiny import SIZES, VOCABULARY, build_llama, build_qwen2, build_tokenizer, randomise

PAD = 0
BUILD = {"llama": build_llama, "qwen2": build_qwen2}
token = st.integers(0, VOCABULARY - 1)
tokens = st.lists(token, min_size=1, max_size=7).map(tuple)
forks = st.builds(Fork, tokens, st.lists(tokens, min_size=1, max_size=4).map(tuple))


def plain_logprob(model: Any, prompt: tuple[int, ...], continuation: tuple[int, ...]) -> Tensor:
    ids = torch.tensor([[*prompt, *continuation]])
    logprobs = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
    return logprobs.gather(-1, ids[0, 1:, None])[len(prompt) - 1 :].sum()


def plain_scores(model: Any, batch: list[Fork]) -> list[list[float]]:
    with torch.no_grad():
        return [[float(plain_logprob(model, fork.prompt, y)) for y in fork.continuations] for fork in batch]


def engine_scores(model: Any, batch: list[Fork], budget: int = 10_000) -> list[list[float]]:
    return score_forks(model, batch, pad_token=PAD, token_budget=budget)


def close(found: list[list[float]], expected: list[list[float]], tolerance: float = 1e-9) -> bool:
    assert [len(row) for row in found] == [len(row) for row in expected]
    flat = zip(chain.from_iterable(found), chain.from_iterable(expected), strict=True)
    return all(abs(a - b) <= tolerance for a, b in flat)


def draw_forks(count: int, continuations: int = 2, *, seed: int = 0, longest: int = 12) -> list[Fork]:
    source = random.Random(seed)

    def draw() -> tuple[int, ...]:
        return tuple(source.randrange(VOCABULARY) for _ in range(source.randint(1, longest)))

    return [Fork(draw(), tuple(draw() for _ in range(continuations))) for _ in range(count)]


def begin_alike(batch: list[Fork], count: int) -> list[Fork]:
    """The same forks after `count` tokens that all have in common."""
    start = tuple(random.Random(7).randrange(VOCABULARY) for _ in range(count))
    return [Fork(start + fork.prompt, fork.continuations) for fork in batch]


def with_lora(model: Any, *, seed: int = 5) -> Any:
    """An adapter that has moved away from its start."""
    student = add_lora(LocalModel(model, build_tokenizer(), name="tiny"), LoraSettings(4, 8), seed=seed).model
    generator = torch.Generator().manual_seed(seed)
    for parameter in student.parameters():
        if parameter.requires_grad:
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return student


# Tokens that all prompts begin with, most tokens in a row of several forks, and what a start laid out apart must save.
LAYOUTS = {
    "one-row": (0, 1000, 128),
    "rows": (0, 1, 128),
    "start-in-one-row": (48, 1000, 128),
    "start-in-rows": (48, 1, 10_000),
    "start-apart": (48, 1, 0),
}


@pytest.fixture(params=LAYOUTS)
def start(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Each way to lay a batch out, and how many tokens its prompts have in common."""
    count, row_tokens, saves = LAYOUTS[request.param]
    monkeypatch.setattr(fork_module, "ROW_TOKENS", row_tokens)
    monkeypatch.setattr(scoring, "SHARED_SAVES", saves)
    layout = lay_out(begin_alike(draw_forks(4), count), PAD, saves=saves)
    assert len(layout.start) == (count if request.param == "start-apart" else 0)
    assert (len(layout.tokens) == 1) == request.param.endswith("one-row")
    return count


@cache
def shared_model(name: str) -> Any:
    """For tests that change nothing."""
    return BUILD[name]()


# --- DPO on the engine is DPO ---------------------------------------------------------------------


def gradients(model: Any, loss: Tensor) -> dict[str, Tensor]:
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("margin_tokens", [None, 2], ids=["replies", "openings"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("chunk", [None, 1, 3 * 4 * VOCABULARY], ids=["whole", "token", "three-tokens"])
@pytest.mark.parametrize("trained", ["lora", "untied", "tied"])
@pytest.mark.parametrize("name", BUILD)
def test_dpo_equals_the_plain_unshared_computation(
    name: str,
    trained: str,
    chunk: int | None,
    checkpointing: bool,
    start: int,
    margin_tokens: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = BUILD[name](tie_word_embeddings=trained == "tied")
    if trained == "lora":
        model = with_lora(model)
    batch = begin_alike([*draw_forks(3), Fork((1, 2, 3), ((4,), (5, 6)))], start)
    source = random.Random(1)
    references = [tuple(-source.uniform(5, 50) for _ in range(2)) for _ in batch]
    objective = DPO(beta=0.3, nll_weight=0.5, opening_weight=3.0, margin_tokens=margin_tokens)

    plain = torch.zeros((), dtype=torch.float64)
    for fork, (reference_chosen, reference_rejected) in zip(batch, references, strict=True):
        chosen = plain_logprob(model, fork.prompt, fork.continuations[0])
        begun = [plain_logprob(model, fork.prompt, y[:margin_tokens]) for y in fork.continuations]
        margin = (begun[0] - reference_chosen) - (begun[1] - reference_rejected)
        plain = plain - logsigmoid(objective.beta * margin) / len(batch)
        opening = plain_logprob(model, fork.prompt, fork.continuations[0][:OPENING_TOKENS])
        emphasised = chosen + (objective.opening_weight - 1) * opening
        plain = plain - objective.nll_weight * emphasised / sum(len(f.continuations[0]) for f in batch)
    expected = gradients(model, plain)

    if chunk is not None:
        monkeypatch.setattr(scoring, "LOGIT_CHUNK_BYTES", chunk)
    if checkpointing:
        model.train()
        model.activation_checkpointing_enable()
    examples = [Example(fork, reference) for fork, reference in zip(batch, references, strict=True)]
    scores = score_batch(model, batch, pad_token=PAD)
    loss, _ = objective.loss(scores, examples, Window.over(examples))
    found = gradients(model, loss)

    assert abs(loss.item() - plain.item()) <= 1e-9
    assert found.keys() == expected.keys() == {n for n, p in model.named_parameters() if p.requires_grad}
    assert any("lora" in key for key in found) == (trained == "lora")
    for key, gradient in expected.items():
        assert float(gradient.norm()) > 0, key
        assert float((found[key] - gradient).norm()) <= 1e-7 * float(gradient.norm()), key


@pytest.mark.parametrize("name", BUILD)
def test_a_fresh_adapter_and_a_switched_off_one_are_the_base_exactly(name: str) -> None:
    batch = draw_forks(4)
    base = engine_scores(BUILD[name](), batch)
    tokenizer = build_tokenizer()
    fresh = add_lora(LocalModel(BUILD[name](), tokenizer, name="tiny"), LoraSettings(), seed=0).model
    assert engine_scores(fresh, batch) == base
    moved = with_lora(BUILD[name]())
    assert engine_scores(moved, batch) != base
    with moved.disable_adapter():
        assert engine_scores(moved, batch) == base


# --- what a score may not depend on ---------------------------------------------------------------


@pytest.mark.parametrize("name", BUILD)
@settings(max_examples=25)
@given(batch=st.lists(forks, min_size=1, max_size=4), start=st.sampled_from([0, 9, 130]), data=st.data())
def test_a_score_depends_on_its_own_fork_alone(name: str, batch: list[Fork], start: int, data: st.DataObject) -> None:
    model = shared_model(name)
    batch = begin_alike(batch, start)
    expected = plain_scores(model, batch)
    assert close(engine_scores(model, batch), expected)

    alone = [engine_scores(model, [fork])[0] for fork in batch]
    assert close(alone, expected), "batch mates and padding"

    budget = data.draw(st.integers(1, 100), label="budget")
    assert close(engine_scores(model, batch, budget), expected), "micro-batches"

    order = data.draw(st.permutations(range(len(batch))), label="order of forks")
    moved = engine_scores(model, [batch[index] for index in order])
    assert close(moved, [expected[index] for index in order])

    turned = [Fork(fork.prompt, fork.continuations[::-1]) for fork in batch]
    assert close([row[::-1] for row in engine_scores(model, turned)], expected), "order of continuations"

    padded = score_forks(model, batch, pad_token=VOCABULARY - 1, token_budget=10_000)
    assert close(padded, expected), "the padding token"


@pytest.mark.parametrize("name", BUILD)
def test_plain_attention_on_short_rows_agrees_with_the_fused_kernel(
    name: str, start: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = with_lora(BUILD[name]()).to(torch.bfloat16)
    batch = begin_alike(draw_forks(6), start)
    found = {}
    for limit in (0, 10_000):
        monkeypatch.setattr(scoring, "PLAIN_ATTENTION_UP_TO", limit)
        sums = score_batch(model, batch, pad_token=PAD).sums()
        sums.sum().backward()
        gradient = torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None])
        model.zero_grad()
        assert model.config._attn_implementation == "sdpa", "what decoding uses does not depend on what was scored"
        found[limit] = (sums.detach(), gradient.float())
    (fused, fused_gradient), (plain, plain_gradient) = found.values()
    assert not torch.equal(fused_gradient, plain_gradient), "both ways were taken"
    assert torch.allclose(plain, fused, rtol=0.02)
    assert torch.nn.functional.cosine_similarity(plain_gradient, fused_gradient, dim=0) > 0.99


def test_sums_and_counts_are_per_continuation() -> None:
    batch = [Fork((1, 2), ((3,), (4, 5, 6))), Fork((7,), ((8, 9),))]
    scores = score_batch(shared_model("llama"), batch, pad_token=PAD)
    assert scores.counts().tolist() == [1, 3, 2]
    parts = scores.logprobs.split([1, 3, 2])
    assert torch.equal(scores.sums(), torch.stack([part.sum() for part in parts]))


def test_dpo_starts_at_ln_2() -> None:
    batch = draw_forks(5)
    base = shared_model("qwen2")
    examples = [
        Example(fork, tuple(values)) for fork, values in zip(batch, engine_scores(base, batch, 40), strict=True)
    ]
    student = add_lora(LocalModel(build_qwen2(), build_tokenizer(), name="tiny"), LoraSettings(), seed=0)
    scores = score_batch(student.model, batch, pad_token=PAD)
    loss, metrics = DPO(beta=0.1).loss(scores, examples, Window.over(examples))
    assert abs(loss.item() - log(2)) <= 1e-12
    assert abs(float(metrics["margin"])) <= 1e-12


# --- the head -------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [False, True], ids=["no-bias", "bias"])
@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_the_gradients_of_both_heads_are_right(
    scale: float, softcap: float | None, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "LOGIT_CHUNK_BYTES", 2 * 4 * 11)  # two tokens a chunk
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(5, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(11, 4, generator=generator, dtype=torch.float64)
    offset = torch.randn(11, generator=generator, dtype=torch.float64) if bias else None
    targets = torch.tensor([0, 10, 3, 3, 7])
    transform = LogitTransform(scale, softcap)

    def frozen(hidden: Tensor) -> Tensor:
        return token_logprobs(hidden, weight, offset, targets, transform)

    def trained(hidden: Tensor, weight: Tensor) -> Tensor:
        return token_logprobs(hidden, weight, offset, targets, transform)

    logits = scale * (hidden @ weight.T + (offset if offset is not None else 0))
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    expected = logits.log_softmax(-1)[torch.arange(5), targets]
    torch.testing.assert_close(frozen(hidden), expected, rtol=0, atol=1e-12)
    assert "FrozenHead" in str(frozen(hidden[:1].expand(5, 4)).grad_fn.next_functions[0][0])
    assert torch.autograd.gradcheck(frozen, (hidden,), atol=1e-7)
    assert torch.autograd.gradcheck(trained, (hidden, weight.clone().requires_grad_()), atol=1e-7)


def _architecture(config: Any, model: Any, **more: Any) -> Any:
    return randomise(model(config(**SIZES | more)), seed=3)


SPECIAL = {
    "gemma2-softcap": (Gemma2Config, Gemma2ForCausalLM, {"head_dim": 8, "final_logit_softcapping": 2.0}),
    "granite-scaling": (GraniteConfig, GraniteForCausalLM, {"logits_scaling": 4.0}),
    "cohere-scale": (CohereConfig, CohereForCausalLM, {"logit_scale": 0.25}),
}


@pytest.mark.parametrize("case", SPECIAL)
def test_what_an_architecture_does_to_its_logits_is_known(case: str) -> None:
    config, kind, more = SPECIAL[case]
    model = _architecture(config, kind, **more)
    batch = draw_forks(3)
    assert close(engine_scores(model, batch), plain_scores(model, batch), 1e-5)  # its norms are float32


@pytest.mark.parametrize("name", BUILD)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_good_models_are_verified(name: str, dtype: torch.dtype) -> None:
    model = BUILD[name](dtype=dtype)
    for fork in draw_forks(3, continuations=3):
        verify_engine(model, fork, pad_token=PAD)
    verify_engine(with_lora(model), fork, pad_token=PAD)


class _Louder(LlamaForCausalLM):
    """Does something to its logits that its config does not tell."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        output.logits = 1.01 * output.logits
        return output


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_an_unknown_head_is_refused(dtype: torch.dtype) -> None:
    model = randomise(_Louder(LlamaConfig(**SIZES)), seed=0, dtype=dtype)
    with pytest.raises(SpiritLevelError, match="disagrees with _Louder"):
        verify_engine(model, draw_forks(1)[0], pad_token=PAD)


class _Forgetful(LlamaForCausalLM):
    """Uses what a cache holds otherwise than a Llama does."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.model.register_forward_pre_hook(self._forget, with_kwargs=True)

    @staticmethod
    def _forget(_: Any, args: Any, kwargs: Any) -> Any:
        cache = kwargs.get("past_key_values")
        if cache is not None and cache.get_seq_length():
            cache.layers[0].values = cache.layers[0].values * 0.5
        return args, kwargs


def test_a_cache_that_works_otherwise_is_refused_though_rows_are_right() -> None:
    model = randomise(_Forgetful(LlamaConfig(**SIZES)), seed=0, dtype=torch.float64)
    fork = draw_forks(1)[0]
    assert close(engine_scores(model, [fork]), plain_scores(model, [fork]))
    with pytest.raises(SpiritLevelError, match="disagrees with _Forgetful"):
        verify_engine(model, Fork((1, 2, 3, 4), fork.continuations), pad_token=PAD)


def test_a_sliding_window_is_refused_where_it_matters() -> None:
    model = _architecture(MistralConfig, MistralForCausalLM, sliding_window=8)
    verify_engine(model, Fork((1, 2, 3), ((4, 5), (6,))), pad_token=PAD)
    with pytest.raises(SpiritLevelError, match="disagrees with MistralForCausalLM"):
        verify_engine(model, Fork(tuple(range(30)), ((4, 5), (6,))), pad_token=PAD)
