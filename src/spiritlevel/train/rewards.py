"""Where rewards come from: a trained reward model, a Python function, or a charter's checks."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import isfinite
from pathlib import Path
from types import ModuleType

from spiritlevel.charter import Charter, Probe, read_probes
from spiritlevel.chat import Chat
from spiritlevel.checks import judge_probe
from spiritlevel.errors import SpiritLevelError
from spiritlevel.models import Fork, LocalModel, RewardModel, reward_fork
from spiritlevel.store import digest_file, digest_json


@dataclass(frozen=True)
class Answered:
    """A prompt with one reply, as text and as the tokens that were drawn."""

    chat: Chat
    reply: str
    fork: Fork
    finished: bool = True


@dataclass(frozen=True)
class RewardSource:
    """Scores replies. digest: of what decides a score, so that a killed run goes on only with the reward it began with.

    Raises SpiritLevelError unless `score` gives one finite number a reply.
    """

    name: str
    digest: str
    score: Callable[[Sequence[Answered]], list[float]]

    def __call__(self, answered: Sequence[Answered]) -> list[float]:
        rewards = self.score(answered)
        if len(rewards) != len(answered) or not all(map(isfinite, rewards)):
            raise SpiritLevelError(
                "the rewards are not one finite number a reply",
                where=self.name,
                remedy="Look at the reward model, or the function.",
            )
        return rewards


def model_reward(model: RewardModel, *, policy: LocalModel) -> RewardSource:
    """The rewards of a trained model, read at the last token that was drawn.

    Raises SpiritLevelError unless it has the policy's tokens: the same id would be another word to it.
    """
    if model.tokenizer.get_vocab() != policy.tokenizer.get_vocab():
        raise SpiritLevelError(
            f"the reward model has another tokenizer than {policy.name}",
            where=model.name,
            remedy="Train a reward model from the policy's base: spiritlevel train reward --model ...",
        )

    def score(answered: Sequence[Answered]) -> list[float]:
        """The replies to one prompt that stand together are one fork, which computes the prompt once."""
        forks = []
        for prompt, replies in groupby(answered, key=lambda one: one.fork.prompt):
            continuations = tuple(y for one in replies for y in one.fork.continuations)
            forks.append(reward_fork(Fork(prompt, continuations), model.pad_token))
        return [reward for of_prompt in model.rewards(forks) for reward in of_prompt]

    return RewardSource(model.name, digest_json([model.digest, model.scale]), score)


def function_reward(function: Callable[[Chat, str], float], *, name: str) -> RewardSource:
    """function(chat, reply) -> float, called for one reply at a time.

    Raises SpiritLevelError naming it if it raises, or returns what is not a finite number.
    """

    def score(answered: Sequence[Answered]) -> list[float]:
        found = []
        for one in answered:
            try:
                reward = float(function(one.chat, one.reply))
            except Exception as error:
                raise SpiritLevelError(
                    f"the reward function raised {type(error).__name__}: {error}",
                    where=name,
                    remedy="It is called with (chat, reply) and must return a number for whatever a model says.",
                ) from error
            if not isfinite(reward):
                raise SpiritLevelError(
                    f"the reward function returned {reward}",
                    where=name,
                    remedy="It must return a finite number for whatever a model says, the empty reply included.",
                )
            found.append(reward)
        return found

    return RewardSource(name, digest_json([name, _source(function)]), score)


def _source(function: Callable[[Chat, str], float]) -> str | None:
    """The digest of the file that a function is written in, if it is in one."""
    try:
        return digest_file(Path(inspect.getfile(function)))
    except (TypeError, OSError):
        return None


def load_function(spec: str) -> Callable[[Chat, str], float]:
    """The function that `package.module:name` or `path/to/file.py:name` names."""
    place, _, name = spec.rpartition(":")
    if not place or not name:
        raise SpiritLevelError(
            "not a reward function", where=spec, remedy="Write module:function, or path/to/file.py:function."
        )
    try:
        module = _module_of_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except Exception as error:
        raise SpiritLevelError(f"can't be imported: {type(error).__name__}: {error}", where=place) from error
    function = getattr(module, name, None)
    if not callable(function):
        raise SpiritLevelError(f"has no function {name!r}", where=place)
    return function  # type: ignore[no-any-return]


def _module_of_file(path: Path) -> ModuleType:
    name = f"reward_function_{path.stem}"  # not that of a module that others import
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.exists():
        raise FileNotFoundError(path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


def charter_reward(charter: Charter) -> RewardSource:
    """1 for a reply without a finding, down to 0 with the surest one. A question that is a train probe of the charter
    is judged by what the probe expects; any other should be helped."""
    probes = {probe.prompt: probe for probe in read_probes(charter, "train")}

    def score(answered: Sequence[Answered]) -> list[float]:
        return [_charter_reward(charter, probes.get(one.chat[-1]["content"]), one) for one in answered]

    told = [(probe.prompt, probe.rule, probe.expect) for probe in probes.values()]
    return RewardSource(charter.name, digest_json([charter.digest, told]), score)


def _charter_reward(charter: Charter, probe: Probe | None, one: Answered) -> float:
    rule, expect = (probe.rule, probe.expect) if probe else (None, "help")
    findings = judge_probe(charter, rule, expect, one.chat, one.reply)
    return 1.0 - max((finding.score for finding in findings), default=0.0)
