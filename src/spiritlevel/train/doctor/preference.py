"""Signs of training on pairs: the DPO family and reward models."""

from __future__ import annotations

from math import log

import numpy as np

from spiritlevel.train.doctor.curve import Run, figure
from spiritlevel.train.doctor.sign import ENOUGH, Evidence, sign


def with_reference(run: Run) -> bool:
    return run.implicit_rewards == "ratio"


def with_implicit_rewards(run: Run) -> bool:
    return run.implicit_rewards is not None


def without_a_target(run: Run) -> bool:
    """IPO wants a margin of a certain size, often beyond 5, and has no more gradient the nearer it is."""
    return "ipo" not in run


@sign(
    "wrong-reference",
    "critical",
    needs={"reward_chosen": ENOUGH, "reward_rejected": ENOUGH},
    cause="The reference is not the model that training starts from: reloaded from disk after SFT in memory, the "
    "base in place of the SFT model, another template or truncation, references kept from another model, or a "
    "quantised copy.",
    remedy="Compute the reference with the very model that is trained, before its first step (adapter off, dropout "
    "off). `spiritlevel train` does; with TRL pass ref_model explicitly and look for a loss of ln 2 = 0.693 at "
    "step 1.",
    source="Rafailov et al. 2023, arXiv:2305.18290 (eq. 7 at the reference); trl#1193, trl#6443",
    asked_of=with_reference,
)
def wrong_reference(run: Run) -> Evidence | None:
    """A policy that is its reference has rewards of exactly 0. The first rewards logged are beyond 0.1 (at beta 0.1
    one nat a reply, far above rounding). Where the log leaves steps out, they are besides at least half of what the
    first fifth has, so they did not grow from 0, and no quick learner explains them, who would win three pairs in four
    by then. Not asked where there is no reference."""
    if not _begins_at_the_start(run):
        return None
    evidence = []
    for name in ("reward_chosen", "reward_rejected"):
        curve = run[name]
        usual = float(np.median(np.abs(np.array_split(curve.finite, 5)[0])))
        if abs(curve.first) >= (0.1 if _of_every_step(run) else max(0.1, 0.5 * usual)):
            evidence.append(f"{name} is {figure(curve.first)} at step {curve.at[0]:.0f}, where it must be 0")
    if not evidence or _learnt_at_once(run):
        return None
    for name in ("dpo", "cdpo", "robust-dpo"):
        if name in run:
            evidence.append(f"the {name} loss is {figure(run[name].first)} there; at its reference it is ln 2 = 0.693")
    return evidence


def _begins_at_the_start(run: Run) -> bool:
    """Not a log of which the beginning is missing, as after a restart."""
    steps = run["reward_chosen"].at
    return bool(steps[0] <= 2 * np.median(np.diff(steps)))


def _of_every_step(run: Run) -> bool:
    """The first log is then of before anything was learnt."""
    steps = run["reward_chosen"].at
    return bool(steps[0] == steps[1] - steps[0] == 1)


def _learnt_at_once(run: Run) -> bool:
    return not _of_every_step(run) and "accuracy" in run and run["accuracy"].first >= 0.75


@sign(
    "stuck-at-ln-2",
    "serious",
    needs={"loss": ENOUGH, "margin": ENOUGH},
    cause="The model has not moved from where it began: a learning rate far too low, an adapter that is off or not "
    "in the optimiser, a beta so small that no margin shows, labels that are noise, or chosen and rejected "
    "replies that are the same.",
    remedy="Check that the weights change and that the pairs differ (`spiritlevel data check`); then raise the "
    "learning rate tenfold.",
    source="Rafailov et al. 2023, arXiv:2305.18290; trl#1962 (loss stuck at 0.6931)",
)
def stuck_at_ln_2(run: Run) -> Evidence | None:
    """In every fifth the preference loss is within 2 % of ln 2 and the margin within 0.03 of 0 (which is those 2 %);
    where an NLL term is part of the loss, both implicit rewards are within 0.03 of 0 instead: a third of a nat a reply
    at beta 0.1."""
    loss, margin = run["loss"], run["margin"]
    if any(abs(value) > 0.03 for value in margin.fifths):
        return None
    if all(abs(value / log(2) - 1) <= 0.02 for value in loss.fifths):
        return [f"loss {loss.course()}: it began at ln 2 and is still there", f"margin {margin.course()}"]
    rewards = [run[name] for name in ("reward_chosen", "reward_rejected") if run.implicit_rewards == "ratio"]
    if rewards and all(abs(value) <= 0.03 for curve in rewards for value in curve.fifths):
        return [f"reward_chosen {rewards[0].course()}", f"margin {margin.course()}"]
    return None


@sign(
    "likelihood-displacement",
    "serious",
    needs={"reward_chosen": ENOUGH, "reward_rejected": ENOUGH, "margin": ENOUGH},
    cause="The margin is won by making both replies unlikely, the rejected one more so; the probability goes to "
    "replies that nobody chose. Pairs that are much alike do this most.",
    remedy="Add an NLL term on the chosen replies (`--nll-weight 1`; TRL: loss_type ['sigmoid', 'sft']), lower the "
    "learning rate, stop earlier, or drop pairs that hardly differ.",
    source="Razin et al. 2024, arXiv:2410.08847; Pal et al. 2024, arXiv:2402.13228; Pang et al. 2024, arXiv:2404.19733",
    asked_of=with_implicit_rewards,
)
def likelihood_displacement(run: Run) -> Evidence | None:
    """The chosen replies' implicit reward ends at least 0.5 below its beginning (at beta 0.1 a reply 150 times less
    likely), by at least half of what the margin has won, and stays down over nine points in ten of the last two
    fifths. Less is usual in DPO. The beginning is 0 where there is a reference."""
    chosen, margin = run["reward_chosen"], run["margin"]
    begun = (0.0, 0.0) if run.implicit_rewards == "ratio" else (chosen.start, margin.start)
    fallen, won = begun[0] - float(np.median(chosen.late)), float(np.median(margin.late)) - begun[1]
    if won <= 0 or fallen < max(0.5, 0.5 * won) or np.mean(chosen.late < begun[0]) < 0.9:
        return None
    evidence = [
        f"reward_chosen {chosen.course()}",
        f"reward_rejected {run['reward_rejected'].course()}",
        f"margin {margin.course()}",
    ]
    if "logprob_chosen" in run:
        evidence.append(f"logprob_chosen {run['logprob_chosen'].course()}")
    return evidence


@sign(
    "saturated-margins",
    "serious",
    needs={"margin": ENOUGH, "accuracy": ENOUGH},
    cause="Every training pair is won by far, so its gradient is nearly 0: what goes on is drift away from the "
    "reference, and a reward that is over-optimised.",
    remedy="Stop at the step where this began, train for fewer epochs, raise beta, or use IPO, whose margin has a "
    "target; add harder pairs.",
    source="Azar et al. 2023, arXiv:2310.12036 (sec. 4.2); Rafailov et al. 2024, arXiv:2406.02900",
    asked_of=without_a_target,
)
def saturated_margins(run: Run) -> Evidence | None:
    """In the last two fifths of the run the median margin is above 5, where a pair has less than 1 % of its gradient
    left (sigma(-5) = 0.0067), and 99 % of all pairs are won. Not asked of IPO, whose margin has a target."""
    margin, accuracy = run["margin"], run["accuracy"]
    won = float(np.mean(accuracy.late))
    if float(np.median(margin.late)) <= 5 or won < 0.99:
        return None
    evidence = [f"margin {margin.course()}", f"accuracy {won:.1%} over the last two fifths"]
    if "grad_norm" in run:
        evidence.append(f"grad_norm {run['grad_norm'].course()}")
    return evidence


@sign(
    "preference-inverted",
    "critical",
    needs={"margin": ENOUGH, "accuracy": ENOUGH},
    cause="Training makes the rejected replies the preferred ones: chosen and rejected are swapped between the "
    "loss and what is measured, or the loss has the wrong sign.",
    remedy="Print one pair as the trainer sees it, and check which column is `chosen`.",
    source="arithmetic: the gradient of every preference loss widens the margin of its own batch",
)
def preference_inverted(run: Run) -> Evidence | None:
    """The margin falls for sure and ends below 0, and fewer than half of the pairs are won at the end, fewer than at
    first."""
    margin, accuracy = run["margin"], run["accuracy"]
    if margin.direction >= 0 or margin.end >= 0 or accuracy.end >= min(0.5, accuracy.start):
        return None
    return [f"margin {margin.course()}", f"accuracy {accuracy.course()}"]


@sign(
    "accuracy-at-chance",
    "serious",
    needs={"accuracy": 50, "margin": 50},
    cause="The pairs teach nothing that holds for the next ones: labels at random, chosen and rejected that hardly "
    "differ, replies cut before they differ, or pairs put together wrongly.",
    remedy="Read twenty pairs as the trainer sees them; look for duplicates with opposite labels, and at how much "
    "truncation cuts off.",
    source="Wang et al. 2024, arXiv:2401.06080 (noise in preferences); Northcutt et al. 2021, arXiv:1911.00068",
)
def accuracy_at_chance(run: Run) -> Evidence | None:
    """Over the last two fifths the mean accuracy is below 55 % by three standard errors, and neither accuracy nor
    margin rises for sure, though the margins have moved. Human labels are learnt to 60 to 70 %."""
    accuracy, margin = run["accuracy"], run["margin"]
    mean, error = float(np.mean(accuracy.late)), float(np.std(accuracy.late)) / len(accuracy.late) ** 0.5
    if mean + 3 * error >= 0.55 or accuracy.direction > 0 or margin.direction > 0:
        return None
    if preference_inverted(run) or ("loss" in run and stuck_at_ln_2(run)):
        return None
    return [f"accuracy {mean:.1%} over the last two fifths", f"margin {margin.course()}"]


@sign(
    "overfit-preferences",
    "serious",
    needs={"accuracy": ENOUGH, "validation_accuracy": 3},
    cause="The reward model (or the policy) knows its training pairs by heart: on others it is far less right, and "
    "a policy that is optimised against it will find where.",
    remedy="One epoch is the rule for reward models; lower the learning rate, add pairs, and take the checkpoint "
    "of the best validation accuracy. 65 to 70 % on held-out pairs is usual for human labels: that alone is no "
    "fault.",
    source="Stiennon et al. 2020, arXiv:2009.01325; Ouyang et al. 2022, arXiv:2203.02155; Gao et al. 2022, "
    "arXiv:2210.10760",
)
def overfit_preferences(run: Run) -> Evidence | None:
    """The training accuracy rises for sure and ends 15 points above the median of the last half of the validations,
    which are no better than the first half. With fifty validation pairs chance makes 7 points."""
    accuracy, validation = run["accuracy"], run["validation_accuracy"]
    half = len(validation) // 2
    before, after = np.median(validation.finite[:half]), np.median(validation.finite[half:])
    gap = float(np.mean(np.array_split(accuracy.finite, 5)[-1]) - after)
    if accuracy.direction <= 0 or gap < 0.15 or after > before + 0.02:
        return None
    return [
        f"accuracy {accuracy.course()}",
        f"validation_accuracy {before:.1%}, then {after:.1%}: {100 * gap:.0f} points less",
    ]
