"""SFT learns from demonstrations as from the chosen side of pairs; methods on pairs refuse them."""

from __future__ import annotations

from pathlib import Path

import pytest

from spiritlevel.data import Demonstration, Preference
from spiritlevel.errors import SpiritLevelError
from spiritlevel.models import LocalModel
from spiritlevel.store import ContentStore
from spiritlevel.train import DPO, SFT, prepare_examples


@pytest.mark.parametrize("finished", [True, False])
def test_a_demonstration_is_laid_out_as_the_chosen_reply_is(tiny_model: LocalModel, finished: bool) -> None:
    pair = Preference.of("hello", "the one", "in the user", chosen_finished=finished)
    shown = Demonstration.of("hello", "the one", finished=finished)
    fork = SFT().fork(shown, tiny_model)
    assert fork == SFT().fork(pair, tiny_model)
    assert (fork.continuations[0][-1] in tiny_model.stop_tokens) is finished


def test_a_method_says_which_records_it_needs(tiny_model: LocalModel, tmp_path: Path) -> None:
    shown = [Demonstration.of("hello", "the one"), Preference.of("hello", "the one", "in")]
    store = ContentStore(tmp_path)
    with pytest.raises(SpiritLevelError, match="dpo learns from preferences, and 1 of 2 records are demonstrations"):
        prepare_examples(tiny_model, DPO(beta=0.1), shown, store=store)
    assert len(prepare_examples(tiny_model, SFT(), shown, store=store)) == 2
