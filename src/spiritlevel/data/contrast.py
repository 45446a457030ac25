"""Contrastive generation: the same question answered under the charter and without it.

The difference between the two replies is what the charter asks of the model; trained into its weights it
needs no prompt (context distillation: Askell et al. 2021, arXiv:2112.00861; contrast pairs: RLCD, Yang et al.
2023, arXiv:2307.12950). Both sides of the line are taught: a question that must be declined gives
(charter's reply > bare reply), one that must be helped gives (helpful reply > refusal), near misses
included, so that the model learns where the line is and not that refusing pays.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher

from spiritlevel.charter import Charter, Probe, few_shot_messages
from spiritlevel.chat import Chat, system, user
from spiritlevel.checks import judge_probe, stance
from spiritlevel.data.preference import Preference
from spiritlevel.models import ChatModel, Reply, answer_all
from spiritlevel.store import ContentStore, digest_json

# About the twelve words of a rejected reply that are kept, by which its stance is mostly known.
_STANCE_TOKENS = 16


@dataclass(frozen=True)
class ContrastConfig:
    """samples: replies drawn under the charter for a question that must be declined, the first greedy, for the
    first `drawn_per_rule` questions of each rule; the others get the charter's own words at once.

    rejected_words: how much of a rejected reply is kept where its opening shows what is wrong with it, a stance; the
    rest would cost time and teach nothing about that.

    help_share: at least so much of all pairs are to help, as far as there are questions for it. A model shown more
    refusals than help learns to refuse.

    wordings: how many of a rule's own wordings are taught, from the first on. A small model that is taught one tells
    better when to use it than one that has to spread its certainty over the first words of several.

    whole_wordings: how often each of the charter's own wordings is taught to its end, its examples not counted; after
    that only its opening, of `opening_words`, as a reply that was cut. They are the same words again: what is left to
    learn is when to say them. None: always. Other trainers don't know a cut `chosen` and would teach to stop there.

    closeness: how much of a drawn reply must match the charter's own wording, 0 to 1. A small model wraps the
    right phrase in nonsense that the checks can't see; a large one may be trusted with a lower value.
    """

    samples: int = 1
    drawn_per_rule: int = 4
    max_new_tokens: int = 32
    rejected_words: int = 12
    help_share: float = 0.45
    wordings: int = 1
    whole_wordings: int | None = None
    opening_words: int = 6
    temperature: float = 0.7
    top_p: float = 1.0
    closeness: float = 0.6
    seed: int = 0


@dataclass
class ContrastReport:
    """How the pairs came about, per rule: pairs by source, and questions that gave none, by reason."""

    pairs: dict[str, Counter[str]] = field(default_factory=dict)
    dropped: dict[str, Counter[str]] = field(default_factory=dict)

    def add(self, rule: str, source: str) -> None:
        self.pairs.setdefault(rule, Counter())[source] += 1

    def drop(self, rule: str, reason: str) -> None:
        self.dropped.setdefault(rule, Counter())[reason] += 1


def contrast_pairs(
    charter: Charter,
    probes: Sequence[Probe],
    model: ChatModel,
    config: ContrastConfig,
    *,
    store: ContentStore,
    on_progress: Callable[[int], None] | None = None,
) -> tuple[list[Preference], ContrastReport]:
    """Preference pairs from a charter and its train probes, each with its rule and where it came from.

    Generated replies are kept in `store`: a call that was killed goes on where it stopped.
    """
    generator = _Contrast(charter, model, config, store, on_progress)
    declining = [*generator.example_pairs(), *generator.declining_pairs(_declined(probes))]
    helping = generator.helpful_pairs([probe for probe in probes if probe.expect == "help"])
    wanted = round(len(declining) * config.help_share / (1 - config.help_share))
    helping += generator.second_helpings(probes, wanted - len(helping))
    pairs = [*declining, *helping]
    for pair in pairs:
        generator.report.add(pair.rule or "help", pair.source)
    return pairs, generator.report


def contrast_workload(probes: Sequence[Probe], config: ContrastConfig) -> int:
    """About how many replies `contrast_pairs` will generate, for a progress bar."""
    unanswered = sum(probe.expect == "help" and probe.reply is None for probe in probes)
    return len(_declined(probes)) + config.samples * len(_drawn(probes, config)) + unanswered


def _declined(probes: Sequence[Probe]) -> list[Probe]:
    return [probe for probe in probes if probe.expect != "help"]


def _drawn(probes: Sequence[Probe], config: ContrastConfig) -> list[int]:
    """The places of the questions that are answered under the charter: the first of each rule."""
    counts: Counter[str | None] = Counter()
    places = []
    for place, probe in enumerate(probes):
        if probe.expect != "help" and counts[probe.rule] < config.drawn_per_rule:
            counts[probe.rule] += 1
            places.append(place)
    return places


def whole_sentences(text: str) -> str:
    """A reply that was cut at its token limit, up to its last full sentence; all of it if there is none."""
    ends = [match.end() for match in re.finditer(r"(?<=[a-z)\]\"'%])[.!?](?=\s|$)", text)]
    return text[: ends[-1]] if ends else text


def opening(reply: Reply, words: int) -> Reply:
    """The first `words` words of a reply, as one that was cut; the reply itself if it has no more."""
    parts = re.findall(r"\s*\S+", reply.text)
    return reply if len(parts) <= words else Reply("".join(parts[:words]), 0, finished=False)


@dataclass
class _Contrast:
    charter: Charter
    model: ChatModel
    config: ContrastConfig
    store: ContentStore
    on_progress: Callable[[int], None] | None
    report: ContrastReport = field(default_factory=ContrastReport)
    said: Counter[str] = field(default_factory=Counter)

    def declining_pairs(self, probes: Sequence[Probe]) -> list[Preference]:
        """For each question to be declined: the charter's way over the bare reply."""
        # A stance shows early; what must not be repeated may stand anywhere.
        redacted = [probe for probe in probes if probe.expect == "redact"]
        others = [probe for probe in probes if probe.expect != "redact"]
        bare = self._bare(redacted) | self._bare(others, min(_STANCE_TOKENS, self.config.max_new_tokens))
        drawn: list[list[Reply]] = [[] for _ in probes]
        for temperature, count in (
            (0.0, min(1, self.config.samples)),
            (self.config.temperature, self.config.samples - 1),
        ):
            tasks = [(index, draw) for index in _drawn(probes, self.config) for draw in range(count)]
            replies = self._answers(
                [self._under_the_charter(probes[index]) for index, _ in tasks],
                temperature=temperature,
                seeds=[_number([self.config.seed, probes[index].id, draw]) for index, draw in tasks],
            )
            for (index, _), reply in zip(tasks, replies, strict=True):
                drawn[index].append(reply)
        pairs = [self._declining_pair(probe, bare[probe.id], own) for probe, own in zip(probes, drawn, strict=True)]
        return [pair for pair in pairs if pair is not None]

    def helpful_pairs(self, probes: Sequence[Probe]) -> list[Preference]:
        """For each question to be helped: a helpful reply, the charter's if it gives one, over a refusal."""
        unanswered = [probe for probe in probes if probe.reply is None]
        own = self._bare(unanswered)
        pairs = []
        for probe in probes:
            helpful = Reply(probe.reply, 0, True) if probe.reply else own[probe.id]
            if self._violates(probe, helpful.text):
                self.report.drop(probe.rule or "help", "the helpful reply does not pass the checks")
            else:
                author = f"charter:{self.charter.name}" if probe.reply else self.model.name
                pairs.append(self._helping(probe, helpful, author, draw=0))
        return [pair for pair in pairs if pair is not None]

    def second_helpings(self, probes: Sequence[Probe], count: int) -> list[Preference]:
        """Up to `count` pairs with the model's own helpful replies beside the charter's, near misses first."""
        answered = [probe for probe in probes if probe.expect == "help" and probe.reply is not None]
        chosen = sorted(answered, key=lambda probe: probe.rule is None)[: max(0, count)]
        own = self._bare(chosen)
        helpful = [(probe, own[probe.id]) for probe in chosen if not self._violates(probe, own[probe.id].text)]
        pairs = [self._helping(probe, reply, self.model.name, draw=1) for probe, reply in helpful]
        return [pair for pair in pairs if pair is not None]

    def example_pairs(self) -> list[Preference]:
        """The charter's bad examples against its own words, and its good examples against its bad ones."""
        pairs = []
        for rule in self.charter.rules:
            for example in rule.examples.bad:
                words = self._own_words(rule.id, example.prompt)
                if words is not None and words != example.reply:
                    pairs.append(self._example(rule.id, example.prompt, words, example.reply))
            for number, example in enumerate(rule.examples.good):
                if rule.examples.bad:
                    worse = rule.examples.bad[number % len(rule.examples.bad)].reply
                    pairs.append(self._example(rule.id, example.prompt, example.reply, worse))
        return pairs

    def _declining_pair(self, probe: Probe, bare: Reply, drawn: Sequence[Reply]) -> Preference | None:
        """Chosen: of the replies drawn under the charter that pass the checks, the one closest to its wording;
        else the charter's own words."""
        assert probe.rule is not None
        rejected = bare
        right = not self._violates(probe, bare.text) or (stance(bare.text).declines and not bare.finished)
        if not bare.text.strip() or right:
            # Right already, perhaps by luck, or it was cut before it could be: the charter's words are still worth
            # learning.
            worse = self.charter.rule(probe.rule).examples.bad
            if not worse:
                self.report.drop(probe.rule, "the bare reply keeps the rule, and there is no bad example to reject")
                return None
            rejected = Reply(random.Random(probe.id).choice(worse).reply, 0, True)
        passing = [text for text in map(_whole, drawn) if not self._violates(probe, text)]
        best = max(passing, key=lambda text: self._closeness(probe.rule, text), default=None)
        if best is not None and self._closeness(probe.rule, best) >= self.config.closeness:
            why = f"drawn under the charter: it keeps `{probe.rule}`, the other reply breaks it"
            return self._pair(probe, Reply(best, 0, True), rejected, "sampled", self.model.name, why)
        words = self._own_words(probe.rule, probe.prompt)
        if words is None:
            self.report.drop(probe.rule, "no draw passed and the rule has no words of its own")
            return None
        own = self._whole_or_opening(words)
        why = f"no draw kept `{probe.rule}` well enough: the charter's own words"
        return self._pair(probe, own, rejected, "charter", f"charter:{self.charter.name}", why)

    def _helping(self, probe: Probe, helpful: Reply, author: str, *, draw: int) -> Preference | None:
        """Against the words of the rule that the question is near to, or of any. A reply of the model that was cut
        stays as it was drawn: its cut is no end to be learnt."""
        speaking = [rule.id for rule in self.charter.rules if rule.say]
        near = probe.rule if probe.rule in speaking else None
        rule_id = near or (random.Random(probe.id).choice(speaking) if speaking else None)
        refusal = self._own_words(rule_id, f"{draw} {probe.prompt}") if rule_id else None
        rejected = Reply(refusal or self.charter.scope.otherwise, 0, True)
        why = f"a question that must be helped, near `{rule_id}`: helping beats declining"
        return self._pair(probe, helpful, rejected, "helpful", author, why)

    def _bare(self, probes: Sequence[Probe], tokens: int | None = None) -> dict[str, Reply]:
        """The model's own reply to each question, by the probe's id."""
        chats = [[user(probe.prompt)] for probe in probes]
        replies = self._answers(chats, temperature=0.0, seeds=[0] * len(chats), tokens=tokens)
        return dict(zip([probe.id for probe in probes], replies, strict=True))

    def _answers(
        self, chats: Sequence[Chat], *, temperature: float, seeds: Sequence[int], tokens: int | None = None
    ) -> list[Reply]:
        return answer_all(
            self.model,
            chats,
            store=self.store,
            max_new_tokens=tokens or self.config.max_new_tokens,
            temperature=temperature,
            top_p=self.config.top_p,
            seeds=seeds,
            on_progress=self.on_progress,
        )

    def _example(self, rule_id: str, prompt: str, chosen: str, rejected: str) -> Preference:
        return Preference.of(
            prompt,
            chosen,
            rejected,
            rule=rule_id,
            source="example",
            author=f"charter:{self.charter.name}",
            why=f"an example of `{rule_id}` in the charter",
            provenance={"charter": self.charter.digest},
        )

    def _pair(
        self, probe: Probe, chosen: Reply, rejected: Reply, source: str, author: str, why: str
    ) -> Preference | None:
        rejected = self._shown_by_its_opening(probe, rejected)
        words, others = chosen.text.split(), rejected.text.split()
        chosen_begins_rejected = not chosen.finished and others[: len(words)] == words
        rejected_begins_chosen = not rejected.finished and words[: len(others)] == others
        if words == others or chosen_begins_rejected or rejected_begins_chosen:
            self.report.drop(probe.rule or "help", "the two replies do not differ")
            return None
        return Preference.of(
            probe.prompt,
            chosen.text,
            rejected.text,
            rule=probe.rule,
            source=source,
            author=author,
            why=why,
            provenance={"charter": self.charter.digest, "model": self.model.digest, "probe": probe.id},
            chosen_finished=chosen.finished,
            rejected_finished=rejected.finished,
        )

    def _whole_or_opening(self, words: str) -> Reply:
        """One of the charter's wordings; when it has been said whole often enough, how it begins."""
        self.said[words] += 1
        whole = self.config.whole_wordings is None or self.said[words] <= self.config.whole_wordings
        reply = Reply(words, 0, True)
        return reply if whole else opening(reply, self.config.opening_words)

    def _shown_by_its_opening(self, probe: Probe, rejected: Reply) -> Reply:
        """The opening of a rejected reply if that is as wrong as the whole, else the whole."""
        cut = opening(rejected, self.config.rejected_words)
        declines = stance(rejected.text).declines
        if probe.expect == "redact" or (probe.expect != "help" and declines):
            return rejected  # its stance is not what is wrong with it
        return cut if stance(cut.text).declines == declines else rejected

    def _violates(self, probe: Probe, reply: str) -> bool:
        return bool(judge_probe(self.charter, probe.rule, probe.expect, [user(probe.prompt)], reply))

    def _closeness(self, rule_id: str | None, text: str) -> float:
        """The share of words that the reply and the nearest wording of the rule have in common, in order."""
        assert rule_id is not None
        rule = self.charter.rule(rule_id)
        wordings = [*rule.say, *(example.reply for example in rule.examples.good)]
        words = text.casefold().split()
        return max(
            (SequenceMatcher(None, words, other.casefold().split()).ratio() for other in wordings),
            default=1.0,
        )

    def _under_the_charter(self, probe: Probe) -> Chat:
        """The question under the role, the rule it is about and that rule's good examples.

        A small model follows three examples of one rule better than the whole charter, and the shorter
        prompt is shared by all questions under the rule.
        """
        assert probe.rule is not None
        rule = self.charter.rule(probe.rule)
        prompt = f"{self.charter.role}\n\n{rule.title}: {rule.text}"
        return [system(prompt), *few_shot_messages(rule.examples.good[:3]), user(probe.prompt)]

    def _own_words(self, rule_id: str, prompt: str) -> str | None:
        """One of the rule's wordings, always the same for the same question and seed."""
        wordings = self.charter.rule(rule_id).say[: self.config.wordings]
        return random.Random(_number([self.config.seed, prompt])).choice(wordings) if wordings else None


def _whole(reply: Reply) -> str:
    return reply.text if reply.finished else whole_sentences(reply.text)


def _number(parts: list[object]) -> int:
    """A 60-bit seed from anything."""
    return int(digest_json(parts)[:15], 16)
