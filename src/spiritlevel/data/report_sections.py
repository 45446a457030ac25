"""The sections of a data report, each a function of rows and their lengths."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from spiritlevel.data.chat_template import template_faults
from spiritlevel.data.contradictions import Comparison
from spiritlevel.data.duplicates import SIMILAR, Duplicate
from spiritlevel.data.label_noise import FEWEST_PAIRS, FOLDS, NoiseBounds, Share, noise_bounds
from spiritlevel.data.lengths import Lengths
from spiritlevel.data.report_figures import (
    NAMED,
    Figure,
    Section,
    Tone,
    count_of,
    doubling_edges,
    histogram,
    places,
    share_of,
    tone_of,
)
from spiritlevel.data.trl import TrlRow, Unreadable
from spiritlevel.stats import Rate, wilson

_ENDED = re.compile(r"[.!?…。！？|>}~`*_\])\"'”’»]\s*\Z")
_LONGER_BY = tuple(step / 2 for step in range(-6, 7))


def reading(rows: Sequence[TrlRow], unreadable: Sequence[Unreadable], refused: Mapping[str, list[TrlRow]]) -> Section:
    """In which of TRL's formats the rows are, and which can't be read; refused: by what the template says."""
    every = len(rows) + len(unreadable)
    figures = []
    for shape, count in sorted(Counter(row.shape for row in rows).items()):
        advice = ""
        if shape.startswith("language modelling"):
            meaning = "Text alone: TRL trains on it as it is; Spirit Level trains on prompts and replies."
        elif shape.endswith("text"):
            meaning = "Plain text: Spirit Level makes messages of it, TRL trains on it without the template."
            advice = "Convert it to messages, so that all tools see the same."
        else:
            meaning = "Messages: every trainer renders them by the model's template."
        figures.append(Figure(f"shape: {shape}", shape.capitalize(), "count", count, "plain", meaning, advice, every))
    for reason in sorted({row.reason for row in unreadable}):
        lines = [row.number for row in unreadable if row.reason == reason]
        title, meaning = f"Can't be read: {reason}", "They are in none of the other figures."
        advice = "Mend or remove these rows: a trainer fails on them or passes them over."
        tone, shown = tone_of(len(lines), every), tuple((line, "") for line in lines[:NAMED])
        name = f"unreadable: {reason}"
        figures.append(Figure(name, title, "count", len(lines), tone, meaning, advice, every, rows=shown))
    for reason, which in sorted(refused.items()):
        meaning = f"The template says: {reason}"
        advice = "Let the person speak first and both take turns, or train a model whose template takes these roles."
        name, title = f"refused: {reason}", "Conversations that the template refuses"
        figures.append(count_of(name, title, which, every, meaning, advice))
    return Section("rows", "Rows", tuple(figures))


def length(lengths: Sequence[Lengths], unit: str, max_length: int | None) -> Section:
    values = {"prompt": [each.prompt for each in lengths]} | {
        name: [each.replies[name] for each in lengths if name in each.replies] for name in ("chosen", "rejected")
    }
    values = {name: counts for name, counts in values.items() if counts}
    figures = []
    for name, counts in values.items():
        ordered = sorted(counts)
        middle, long = ordered[len(ordered) // 2], ordered[len(ordered) * 19 // 20]
        meaning = f"In all. Median {middle:,}, one in twenty {long:,} or more, longest {ordered[-1]:,}."
        title = f"{name.capitalize()}, {unit}"
        figures.append(Figure(f"{name}_{unit}", title, "number", sum(counts), "plain", meaning))
    edges = doubling_edges(max((max(counts) for counts in values.values()), default=0))
    charts = [histogram(name.capitalize(), unit, counts, edges) for name, counts in values.items()]
    whole = [each.whole for each in lengths]
    if whole:
        edges = doubling_edges(max(*whole, max_length or 0))
        charts.append(histogram("Prompt with the longer reply", unit, whole, edges, max_length))
    return Section("length", "Length", tuple(figures), tuple(charts))


def truncation(lengths: Sequence[Lengths], max_length: int) -> Section:
    """What TRL's keep_start cut takes away: rows whose prompt alone fills `max_length`, and the ends of others."""
    kept = [each for each in lengths if each.prompt < max_length]
    dropped = [each.row for each in lengths if each.prompt >= max_length]
    cut = [each.row for each in kept if _over(each, max_length)]
    every = sum(laid.length for each in lengths for laid in each.laid.values())
    lost = every - sum(min(laid.length, max_length) for each in kept for laid in each.laid.values())
    remedy = "Raise max_length, or leave the rows out knowingly: `data curate --max-length`."
    figures = [
        count_of(
            "rows_dropped", "Rows dropped", dropped, len(lengths),
            "The prompt alone is as long or longer: TRL's SFT and DPO drop the row without a count.", remedy,
        ),
        count_of(
            "rows_cut", "Rows cut", cut, len(lengths),
            "With its prompt a reply is longer and loses its end (keep_start, TRL's default).", remedy,
        ),
        Figure(
            "tokens_lost", "Tokens lost", "count", lost, tone_of(lost, every),
            "By dropping and cutting, of all that a trainer is given, a prompt counted with each of its replies.",
            remedy, every,
        ),
    ]  # fmt: skip
    for name in ("chosen", "rejected"):
        laid = [(each.row, each.laid[name]) for each in kept if name in each.laid]
        ends = [row for row, reply in laid if reply.loses_end(max_length)]
        meaning = f"The {name} reply is cut before its end token: it is learnt as one that goes on."
        if any(name in each.laid for each in lengths):
            figures.append(count_of(f"end_lost_{name}", f"End token lost, {name}", ends, len(laid), meaning, remedy))
    if pairs := [each for each in lengths if len(each.laid) == 2]:
        over = [each.row for each in pairs if _over(each, max_length)]
        meaning = "With its prompt a reply is longer: TRL's RewardTrainer drops the pair without a count."
        figures.append(count_of("reward_dropped", "Pairs a reward model drops", over, len(pairs), meaning, remedy))
    return Section("truncation", f"Cut at {max_length:,} tokens", tuple(figures))


def _over(lengths: Lengths, max_length: int) -> bool:
    return any(laid.length > max_length for laid in lengths.laid.values())


def repetition(rows: Sequence[TrlRow], duplicates: Sequence[Duplicate], compared: Sequence[Comparison]) -> Section:
    exact = [rows[each.index] for each in duplicates if each.exact]
    near = [rows[each.index] for each in duplicates if not each.exact]
    pairs = [row for row in rows if row.chosen is not None and row.rejected is not None]
    disputed = [question for question in compared if question.contested]
    figures = [
        count_of(
            "exact_duplicates", "Exact duplicates", exact, len(rows),
            "Prompt and replies say what another row says, but for white space; the first of them is not counted.",
            "`data curate` keeps the first.",
        ),
        count_of(
            "near_duplicates", "Near duplicates", near, len(rows),
            f"Prompt and replies each have {SIMILAR:.0%} of their word triples in common with another row's.",
            "`data curate` keeps the first of each group.",
        ),
        count_of(
            "contradictory", "Rows that contradict another",
            [rows[index] for question in disputed for index in question.one + question.other], len(rows),
            f"A > B here and B > A there, or one reply labelled good and bad: {len(disputed)} questions are disputed.",
            "`data curate` keeps the side with more rows, and neither at a tie. Ask who labelled them.",
        ),
        count_of(
            "empty_replies", "Empty replies", [row for row in rows if not all(map(str.strip, row.replies.values()))],
            len(rows), "A reply has no words: saying nothing is learnt, or learnt against.",
            "Remove them; `data curate` does.",
        ),
    ]  # fmt: skip
    if pairs:
        title, same = "Chosen and rejected are the same", [row for row in pairs if row.chosen == row.rejected]
        meaning = "There is nothing to prefer: DPO's gradient is zero, and Spirit Level refuses the row."
        remedy = "Remove them; `data curate` does."
        figures.append(count_of("identical_replies", title, same, len(pairs), meaning, remedy))
    return Section("repetition", "Repetition and contradiction", tuple(figures))


def labels(rows: Sequence[TrlRow], lengths: Sequence[Lengths], unit: str, compared: Sequence[Comparison]) -> Section:
    both = [(each.replies["chosen"], each.replies["rejected"]) for each in lengths if len(each.replies) == 2]
    bounds = noise_bounds(rows, compared)
    figures = ([_length_judge(both)] if both else []) + ([_repeats(bounds)] if compared else [])
    if both:
        figures.append(
            share_of(
                "noise_at_most", "Labels that are wrong at random, at most", bounds.at_most, "plain",
                "What a model that sees only the form of the replies (length, marks, lists, declining) gets wrong on"
                f" pairs it was not fitted to, in {FOLDS} folds; nothing foresees random errors, so there are not more."
                " It is a bound, not an estimate: mostly the true share is far below. An error that all labellers share"
                f" is not noise and does not show. It takes {FEWEST_PAIRS} pairs.",
                "On such labels no reward model can be right more often than one minus the true share.",
            )
        )  # fmt: skip
    ratios = [math.log2((chosen + 1) / (rejected + 1)) for chosen, rejected in both]
    title, of = "Left: the rejected reply is longer. Right: the chosen", f"doublings, in {unit}"
    charts = (histogram(title, of, ratios, _LONGER_BY, 0.0),) if both else ()
    return Section("labels", "Labels", tuple(figures), charts)


def _length_judge(both: Sequence[tuple[int, int]]) -> Figure:
    different = [(chosen, rejected) for chosen, rejected in both if chosen != rejected]
    longer = wilson(sum(chosen > rejected for chosen, rejected in different), len(different))
    return share_of(
        "length_judge", "A judge that only likes the longer reply is right",
        Share(longer.value, longer.low, longer.high) if different else None, _bias(longer),
        f"Of the {len(different):,} pairs whose lengths differ, those whose chosen reply is the longer;"
        f" {len(both) - len(different):,} more are equally long. Far from 50%, length alone tells much of the"
        " preference, and training teaches it.",
        "Balance the lengths or train on means over tokens (SimPO), and control for length when you evaluate.",
    )  # fmt: skip


def _repeats(bounds: NoiseBounds) -> Figure:
    repeats = bounds.disagreement
    told = f"{repeats.hits} of {repeats.n} such verdicts differ." if repeats else "No question is judged twice here."
    return share_of(
        "noise_from_repeats", "Labels that are wrong at random, by questions judged twice", bounds.from_repeats,
        "plain",
        f"{told} If errors are independent, two verdicts differ with 2e(1 − e) if a share e is wrong."
        " Copied rows agree with themselves and make this too low.",
        "Have some hundred pairs labelled twice, by different people: no other estimate is as good.",
    )  # fmt: skip


def _bias(longer: Rate) -> Tone:
    if longer.low <= 0.5 <= longer.high:
        return "good"
    return "bad" if longer.low > 0.6 or longer.high < 0.4 else "unsure"


def endings(rows: Sequence[TrlRow]) -> Section:
    figures = []
    for name in ("chosen", "rejected"):
        replies = [(row, reply) for row in rows if (reply := row.replies.get(name)) is not None]
        marked = [row for row, _ in replies if row.raw.get(f"{name}_finished") is False]
        unended = [row for row, reply in replies if reply.strip() and not _ENDED.search(reply)]
        for key, title, which, meaning, advice in (
            (
                "marked_cut", "Marked as cut", marked,
                f"`{name}_finished` is false: Spirit Level gives it no end token, others teach to stop there.", "",
            ),
            (
                "open_ended", "Without a sentence's end", unended,
                "The reply ends in no mark that closes a sentence, list or code. Some are meant, as a number is;"
                " others were cut when they were generated.",
                "Look at some: a reply cut in mid-sentence teaches to stop there.",
            ),
        ):  # fmt: skip
            named, count = f"{title}, {name}", len(which)
            figure = Figure(f"{key}_{name}", named, "count", count, "plain", meaning, advice, len(replies))
            figures += [replace(figure, rows=places(which))] if replies else []
    return Section("endings", "How replies end", tuple(figures))


def template(rows: Sequence[TrlRow], lengths: Sequence[Lengths], tokenizer: Any) -> Section:
    figures = [
        Figure(fault.name, fault.title, "fault", 1, "bad", f"Tried: {fault.evidence}.", fault.advice)
        for fault in template_faults(tokenizer)
    ]
    broken = [each.row for each in lengths if not all(laid.whole_prompt for laid in each.laid.values())]
    endless = [each.row for each in lengths if any(laid.end is None for laid in each.laid.values())]
    special = [str(token) for token in tokenizer.all_special_tokens]
    holding = [row for row in rows if any(token in part for part in row.parts for token in special)]
    ruled = [row for row in rows if any(message["role"] == "system" for message in row.prompt)]
    figures += [
        count_of(
            "not_a_token_prefix", "Prompts that are no token prefix", broken, len(lengths),
            "At run time the prompt has other tokens than before the reply in training: some merge or are left out.",
            "End the prompt on a token boundary, or mend the template.",
        ),
        count_of(
            "no_end_token", "Replies without an end token", endless, len(lengths),
            "After the template nothing marks the end of the reply: the model is not taught to stop.",
            "Mend the template, or add the end token.",
        ),
        count_of(
            "special_tokens", "Special tokens in the text", holding, len(rows),
            f"A text contains one of {', '.join(special[:4])}: it becomes that token, and a turn may end there.",
            "Remove it: the rows were rendered once already, or somebody tries to steer the model.",
        ),
        Figure(
            "system_messages", "Rows with a system message", "count", len(ruled), "plain",
            "They need a template that knows the system role.", "", len(rows),
        ),
    ]  # fmt: skip
    return Section("template", "Template and special tokens", tuple(figures))
