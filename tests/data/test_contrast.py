"""Contrastive pairs: both sides of the line, balanced, traced, the same after a resume."""

from collections import Counter
from pathlib import Path

import pytest

from spiritlevel.charter import load_charter, read_probes
from spiritlevel.checks import judge_probe
from spiritlevel.data import ContrastConfig, contrast_pairs, contrast_workload
from spiritlevel.data.contrast import ContrastReport, _Contrast, opening, whole_sentences
from spiritlevel.models import Reply
from spiritlevel.store import ContentStore, digest_json

CHARTER = load_charter("src/spiritlevel/charter/templates/accounting")
PROBES = read_probes(CHARTER, "train")


class ScriptedModel:
    """A model whose replies are known: it answers everything when bare; prompted, it says what it is told to."""

    name = "scripted"

    def __init__(self, bare: str, prompted: str) -> None:
        self.bare, self.prompted, self.asked = bare, prompted, 0
        self.digest = digest_json([bare, prompted])

    def plan(self, chats):
        return [[index] for index in range(len(chats))]

    def generate(self, chats, *, on_finish=None, **_):
        self.asked += len(chats)
        replies = []
        for index, chat in enumerate(chats):
            words = self.prompted if chat[0]["role"] == "system" else self.bare
            replies.append(Reply(words, 5, True))
            on_finish(index, replies[-1])
        return replies


ANSWER = "Yes, you can do that today; here is how: start with the first form and then send it off."


def make(tmp_path: Path, model, **config):
    store = ContentStore(tmp_path / "store")
    return contrast_pairs(CHARTER, PROBES, model, ContrastConfig(**config), store=store)


def test_every_pair_is_traced_and_its_chosen_side_passes_the_checks(tmp_path):
    pairs, _ = make(tmp_path, ScriptedModel(ANSWER, "nonsense"))
    by_prompt = {probe.prompt: probe for probe in PROBES}
    rules = {rule.id for rule in CHARTER.rules}
    for pair in pairs:
        assert pair.provenance["charter"] == CHARTER.digest
        assert pair.author
        assert pair.why
        assert pair.rule in rules | {None}
        probe = by_prompt.get(pair.chat[0]["content"])
        if probe is not None:
            assert not judge_probe(CHARTER, probe.rule, probe.expect, pair.chat, pair.chosen_text)


def test_held_out_probes_never_appear(tmp_path):
    pairs, _ = make(tmp_path, ScriptedModel(ANSWER, "nonsense"))
    held_out = {probe.prompt for probe in read_probes(CHARTER, "held_out")}
    assert not held_out & {pair.chat[0]["content"] for pair in pairs}


def test_both_sides_of_the_line_are_balanced(tmp_path):
    pairs, _ = make(tmp_path, ScriptedModel(ANSWER, "nonsense"))
    helping = sum(pair.source == "helpful" for pair in pairs)
    assert 0.4 <= helping / len(pairs) <= 0.6


@pytest.mark.parametrize("good_draw", [True, False])
def test_a_close_draw_is_taken_and_nonsense_falls_back_to_the_charters_words(tmp_path, good_draw):
    rule = CHARTER.rule("no-legal-advice")
    model = ScriptedModel(ANSWER, rule.say[0] if good_draw else "I can't help with that. Ask our legal colleague, la.")
    pairs, report = make(tmp_path, model)
    sources = Counter(pair.source for pair in pairs if pair.rule == rule.id)
    assert (sources["sampled"] > 0) is good_draw
    if not good_draw:
        assert {p.chosen_text for p in pairs if p.rule == rule.id and p.source == "charter"} == {rule.say[0]}
    assert report.pairs[rule.id] == sources


def test_a_second_call_asks_nothing_and_gives_the_same(tmp_path):
    model = ScriptedModel(ANSWER, "nonsense")
    first, _ = make(tmp_path, model)
    asked = model.asked
    assert asked >= contrast_workload(PROBES, ContrastConfig()) > 0
    again, _ = make(tmp_path, model)
    assert again == first
    assert model.asked == asked


def test_another_seed_words_refusals_differently(tmp_path):
    first, _ = make(tmp_path, ScriptedModel(ANSWER, "nonsense"), seed=0, wordings=3)
    second, _ = make(tmp_path, ScriptedModel(ANSWER, "nonsense"), seed=1, wordings=3)
    rule = CHARTER.rule("no-legal-advice")
    found = {pair.chosen_text for pair in first if pair.rule == rule.id and pair.source == "charter"}
    assert found == set(rule.say[:3])
    assert [p.chosen_text for p in first] != [p.chosen_text for p in second]


def test_each_wording_is_said_whole_so_often_and_then_begun(tmp_path):
    pairs, _ = make(tmp_path, ScriptedModel(ANSWER, "nonsense"), wordings=2, whole_wordings=2, opening_words=4)
    begun = 0
    for rule in CHARTER.rules:
        for wording in rule.say[:2]:
            opening = " ".join(wording.split()[:4])
            of_rule = [pair for pair in pairs if pair.rule == rule.id and pair.source == "charter"]
            said = [pair for pair in of_rule if pair.chosen_text in (wording, opening)]
            assert [pair.chosen_text for pair in said] == [wording] * min(2, len(said)) + [opening] * (len(said) - 2)
            assert all(pair.chosen_finished == (pair.chosen_text == wording) for pair in said)
            begun += len(said) > 2
    assert begun


@pytest.mark.parametrize(
    ("chosen", "rejected", "same"),
    [
        (Reply("I will not.", 3, True), Reply("I will not.", 3, True), True),
        (Reply("I will", 2, False), Reply("I will not.", 3, True), True),
        (Reply("I will not.", 3, True), Reply("I will", 2, False), True),
        (Reply("I will not.", 3, True), Reply("I will not. But here", 5, False), False),
        (Reply("I will not. But here", 5, False), Reply("I will not.", 3, True), False),
        (Reply("I will", 2, False), Reply("You will not.", 3, True), False),
    ],
)
def test_a_pair_whose_cut_reply_begins_the_other_teaches_nothing(tmp_path, chosen, rejected, same):
    report = ContrastReport()
    generator = _Contrast(
        CHARTER, ScriptedModel(ANSWER, ANSWER), ContrastConfig(), ContentStore(tmp_path), None, report
    )
    declined = next(probe for probe in PROBES if probe.expect == "redact")  # whose rejected reply stays whole
    pair = generator._pair(declined, chosen, rejected, "charter", "charter", "why")
    assert (pair is None) == same == bool(report.dropped)


def test_only_the_opening_of_a_rejected_reply_is_kept_where_its_stance_is_wrong(tmp_path):
    pairs, _ = make(tmp_path, ScriptedModel(ANSWER, "nonsense"))
    expected = {probe.prompt: probe.expect for probe in PROBES}
    lengths = {expect: [] for expect in expected.values()}
    for pair in pairs:
        if pair.source != "example":
            lengths[expected[pair.chat[0]["content"]]].append(len(pair.rejected_text.split()))
    assert max(lengths["refuse"]) == max(lengths["refer"]) == 12
    assert sum(length > 12 for length in lengths["help"]) < 0.1 * len(lengths["help"])
    assert max(lengths["redact"]) > 12, "what must not be repeated may stand anywhere in a reply"


REFUSES_BUT_NAMES_NOBODY = (
    "I'm sorry, but I can't help with that, because I am only a machine and would not want to tell you wrong things."
)


def test_a_reply_whose_opening_is_right_is_rejected_whole_or_not_at_all(tmp_path):
    pairs, _ = make(tmp_path, ScriptedModel(REFUSES_BUT_NAMES_NOBODY, "nonsense"), rejected_words=4)
    refer = {probe.prompt for probe in PROBES if probe.expect == "refer"}
    rejected = {p.rejected_text for p in pairs if p.source == "charter" and p.chat[0]["content"] in refer}
    assert REFUSES_BUT_NAMES_NOBODY in rejected
    assert not any(text != REFUSES_BUT_NAMES_NOBODY and REFUSES_BUT_NAMES_NOBODY.startswith(text) for text in rejected)


def test_a_refusal_that_was_cut_is_not_rejected_for_what_it_had_no_room_to_say(tmp_path):
    class CutShort(ScriptedModel):
        def generate(self, chats, *, on_finish=None, **_):
            replies = [Reply(REFUSES_BUT_NAMES_NOBODY, 24, False) for _ in chats]
            for index, reply in enumerate(replies):
                on_finish(index, reply)
            return replies

    pairs, _ = make(tmp_path, CutShort(ANSWER, "nonsense"))
    assert not any(REFUSES_BUT_NAMES_NOBODY.startswith(pair.rejected_text) for pair in pairs)


def test_a_few_pairs_to_help_are_not_outweighed_by_the_examples(tmp_path):
    few = [probe for probe in PROBES if probe.expect != "help"][:20] + [p for p in PROBES if p.expect == "help"][:60]
    declining = sum(len(rule.examples.good) + len(rule.examples.bad) for rule in CHARTER.rules) + 20
    store = ContentStore(tmp_path / "store")
    pairs, _ = contrast_pairs(CHARTER, few, ScriptedModel(ANSWER, "nonsense"), ContrastConfig(), store=store)
    helping = sum(pair.source == "helpful" for pair in pairs)
    assert helping == round(declining * 0.45 / 0.55)


def test_an_opening_is_cut_between_words():
    assert opening(Reply("One  two, three.", 5, True), 2) == Reply("One  two,", 0, False)
    assert opening(Reply("One  two, three.", 5, True), 3) == Reply("One  two, three.", 5, True)


def test_a_cut_reply_ends_at_its_last_sentence():
    assert whole_sentences("One is done. Two is") == "One is done."
    assert whole_sentences("1. First item and more") == "1. First item and more"
    assert whole_sentences("Nothing ends here") == "Nothing ends here"
