"""What MinHash proposes and the shingles confirm is what a comparison of every two records finds."""

import random

from hypothesis import given
from hypothesis import strategies as st

from spiritlevel.data.duplicates import SIMILAR, find_duplicates, jaccard, near_pairs, shingles

VOCABULARY = ["the", "cat", "sat", "on", "a", "red", "mat", "and", "slept"]
words = st.lists(st.sampled_from(VOCABULARY), max_size=12).map(" ".join)
records = st.tuples(words, words, words)


def sentence(seed: int, length: int = 40) -> str:
    draw = random.Random(seed)
    return " ".join(draw.choice("abcdefghijklmnopqrstuvwxyz") * draw.randint(1, 9) for _ in range(length))


def by_comparing_all(found: list[tuple[str, str, str]]) -> dict[tuple[int, int], float]:
    likeness = {
        (one, other): min(jaccard(shingles(a), shingles(b)) for a, b in zip(found[one], found[other], strict=True))
        for other in range(len(found))
        for one in range(other)
    }
    return {pair: value for pair, value in likeness.items() if value >= SIMILAR}


@given(st.lists(records, max_size=12))
def test_pairs_are_those_that_comparing_every_two_finds(found: list[tuple[str, str, str]]) -> None:
    assert {(one, other): value for one, other, value in near_pairs(found)} == by_comparing_all(found)


def test_long_texts_with_few_changes_are_found_and_with_many_are_not() -> None:
    texts = [sentence(seed) for seed in range(60)]
    changed = [" ".join("other" if place == 20 else word for place, word in enumerate(text.split())) for text in texts]
    rewritten = [" ".join(sorted(text.split())) for text in texts]
    pairs = near_pairs([("", text) for text in [*texts, *changed, *rewritten]])
    assert [(one, other) for one, other, _ in pairs] == [(number, 60 + number) for number in range(60)]
    assert all(SIMILAR <= value < 1 for _, _, value in pairs)


@given(st.lists(records, max_size=12), st.randoms(use_true_random=False))
def test_groups_do_not_depend_on_the_order(found: list[tuple[str, str, str]], draw: random.Random) -> None:
    shuffled = draw.sample(found, len(found))

    def told(each: list[tuple[str, str, str]]) -> tuple[int, int]:
        duplicates = find_duplicates(each)
        return len(duplicates), sum(duplicate.exact for duplicate in duplicates)

    assert told(found) == told(shuffled)


@given(st.lists(records, max_size=12))
def test_what_is_left_is_first_of_its_group_and_is_never_alike(found: list[tuple[str, str, str]]) -> None:
    duplicates = {duplicate.index: duplicate for duplicate in find_duplicates(found)}
    left = [record for index, record in enumerate(found) if index not in duplicates]
    assert not find_duplicates(left)
    for duplicate in duplicates.values():
        assert duplicate.of < duplicate.index and duplicate.of not in duplicates
        assert SIMILAR <= duplicate.similarity <= 1


def test_a_pair_is_no_duplicate_of_its_reverse_nor_of_another_judgement_on_its_prompt() -> None:
    prompt, one, other = sentence(1, 300), sentence(2, 8), sentence(3, 8)
    assert not find_duplicates([(prompt, one, other), (prompt, other, one), (prompt, one, sentence(4, 8))])


def test_a_text_before_all_questions_proposes_nothing() -> None:
    before, count = sentence(1, 300), 60
    found = [(before, sentence(2 + number, 10), "I must decline.") for number in range(count)]
    shingles.cache_clear()
    assert not near_pairs(found)
    asked = shingles.cache_info()
    assert asked.hits + asked.misses < 4 * count, "of 1770 pairs hardly one is compared"


def test_exact_means_but_for_white_space() -> None:
    [duplicate] = find_duplicates([("a b", "c", "d"), ("a  b\n", "c", " d")])
    assert duplicate.exact and (duplicate.index, duplicate.of) == (1, 0)
    [near] = find_duplicates([("A b", "c", "d"), ("a b", "c", "d")])
    assert not near.exact and near.similarity == 1.0


def test_signs_count_and_unspaced_languages_have_words() -> None:
    assert not find_duplicates([("2 + 2", "", ""), ("2 - 2", "", "")])
    assert len(shingles("今日は天気がいいです")) == 8
