"""SFT learns from demonstrations as from the chosen side of pairs; methods on pairs refuse them."""

from __future__ import annotations

import pytest

from spiritlevel.data import Demonstration, Preference
from spiritlevel.errors import SpiritLevelError
from spiritlevel.models import LocalModel
from spiritlevel.train import DPO, SFT


@pytest.mark.parametrize("finished", [True, False])
def test_a_demonstration_is_laid_out_as_the_chosen_reply_is(tiny_model: LocalModel, finished: bool) -> None:
    pair = Preference.of("hello", "the one", "in the user", chosen_finished=finished)
    shown = Demonstration.of("hello", "the one", finished=finished)
    fork = SFT().fork(shown, tiny_model)
    assert fork == SFT().fork(pair, tiny_model)
    assert (fork.continuations[0][-1] in tiny_model.stop_tokens) is finished


def test_a_method_on_pairs_says_that_it_needs_them(tiny_model: LocalModel) -> None:
    with pytest.raises(SpiritLevelError, match="dpo learns from pairs") as told:
        DPO(beta=0.1).fork(Demonstration.of("hello", "the one"), tiny_model)
    assert "sft" in told.value.remedy
