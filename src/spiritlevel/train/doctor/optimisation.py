"""Signs of any training: loss, gradient, learning rate, epochs."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from scipy.stats import mannwhitneyu

from spiritlevel.train.doctor.curve import SURE, Numbers, Run, direction, figure
from spiritlevel.train.doctor.preference import stuck_at_ln_2
from spiritlevel.train.doctor.sign import ENOUGH, Evidence, sign

# Ours and transformers' default.
MAX_GRAD_NORM = 1.0


def without_rollouts(run: Run) -> bool:
    """The loss then is of data that stay the same."""
    return not run.has_rollouts


def text_alone(run: Run) -> bool:
    """SFT: neither rollouts nor judged replies, whose loss goes to zero anyway."""
    return not run.has_rollouts and "margin" not in run and "reward_desirable" not in run


@sign(
    "not-finite",
    "critical",
    needs={},
    cause="The numbers overflowed: a learning rate far too high, float16 without loss scaling, or an example with "
    "an empty reply (0/0) or a reply of probability 0 (log 0).",
    remedy="Go back to the last checkpoint before that step. Use bfloat16 or float32, warm up, lower the learning "
    "rate tenfold, and look at the examples of that step.",
    source="Micikevicius et al. 2017, arXiv:1710.03740 (loss scaling)",
)
def not_finite(run: Run) -> Evidence | None:
    """A loss, value loss or KL that is nan or infinite at any step; or a gradient norm that is so at more than one
    step in twenty (rarer, it is float16's loss scaling at work). transformers hides a loss that is nan; its gradient
    norm tells."""
    evidence = []
    for name in ("loss", "value_loss", "kl", "grad_norm"):
        if name not in run:
            continue
        curve = run[name]
        allowed = len(curve.values) / 20 if name == "grad_norm" else 0
        if len(curve.broken) > allowed:
            evidence.append(
                f"{name} is not a finite number at {len(curve.broken)} of {len(curve.values)} points, first at step "
                f"{curve.broken[0]:.0f}"
            )
    return evidence or None


@sign(
    "loss-diverged",
    "critical",
    needs={"loss": ENOUGH},
    cause="The learning rate is too high for this model, batch size and adapter, or there was no warm-up.",
    remedy="Lower the learning rate three- to tenfold, warm up over 5 to 10 % of the steps, and keep gradient "
    "clipping on.",
    source="Goyal et al. 2017, arXiv:1706.02677; Wortsman et al. 2023, arXiv:2309.14322",
    asked_of=without_rollouts,
)
def loss_diverged(run: Run) -> Evidence | None:
    """The loss rises for sure from its best fifth on, ends half as high again as there, and no lower than it began. A
    loss on training data that ends where it began has unlearnt everything. Not asked of rollouts, whose data
    change."""
    found = _climb(run)
    if found is None:
        return None
    best, climb = found
    loss = run["loss"]
    if climb < 1.5 or loss.end < loss.start:
        return None
    return [f"loss {loss.course()}", f"best {loss.told(best)}; now {climb:.2f} times that"]


@sign(
    "learning-rate-too-high",
    "serious",
    needs={"loss": ENOUGH},
    cause="Steps are too long: the optimiser leaves the region in which the loss it follows is a guide.",
    remedy="Lower the learning rate three- to tenfold (DPO: about 5e-7 to 1e-6 for full weights, ten times that "
    "for LoRA), or raise the batch size; with DPO also look at beta.",
    source="Rafailov et al. 2023, arXiv:2305.18290 (app. B); Schulman & Thinking Machines 2025, LoRA Without Regret",
    asked_of=without_rollouts,
)
def learning_rate_too_high(run: Run) -> Evidence | None:
    """The loss rises for sure by 15 % from its best fifth on, without having diverged; or, where the loss began at ln
    2 (a preference loss at its reference), its mean over the last two fifths is 10 % above that by three standard
    errors: the model is worse at its task than untrained."""
    found = _climb(run)
    loss = run["loss"]
    if loss_diverged(run) is None and found is not None and found[1] >= 1.15:
        return [f"loss {loss.told(found[0])} at its best, then {loss.told()}: it climbs back"]
    mean, error = float(np.mean(loss.late)), float(np.std(loss.late)) / len(loss.late) ** 0.5
    if "margin" in run and abs(loss.first - np.log(2)) <= 0.02 and mean - 3 * error > 1.1 * np.log(2):
        return [f"loss {figure(loss.first)} at first, ln 2; on average {figure(mean)} over the last two fifths"]
    return None


@sign(
    "loss-flat",
    "serious",
    needs={"loss": 50},
    cause="The learning rate is too low for the number of steps, the weights that should learn are frozen or not "
    "in the optimiser, or the data have nothing more to teach this model.",
    remedy="Check that the adapter's weights ask for gradients and change; then raise the learning rate three- to "
    "tenfold. LoRA needs about ten times the rate of full weights.",
    source="Schulman & Thinking Machines 2025, LoRA Without Regret; Biderman et al. 2024, arXiv:2405.09673",
    asked_of=without_rollouts,
)
def loss_flat(run: Run) -> Evidence | None:
    """All fifths of the run have the same loss to 5 %, and its first points no more; the batches are so even, or so
    many, that a change of 5 % would have shown (three standard errors of a median). Not asked of rollouts."""
    loss = run["loss"]
    if loss.end <= 0 or loss.direction or ("margin" in run and stuck_at_ln_2(run)):
        return None
    noise = 1.4826 * float(np.median(np.abs(loss.finite - np.median(loss.finite))))
    unsure = 3 * 1.2533 * noise * (2 / (len(loss) / 5)) ** 0.5
    began = float(np.median(loss.finite[:3]))
    if max(loss.fifths) - min(loss.fifths) + unsure > 0.05 * loss.end or began > 1.05 * loss.end + 2 * noise:
        return None
    return [f"loss {loss.course()}: no fifth of the run differs by 5 % from another", *_peak_rate(run)]


@sign(
    "learning-rate-spent",
    "serious",
    needs={"learning_rate": ENOUGH},
    cause="The schedule was made for fewer steps than were run, or the rate was never set: the optimiser stood still.",
    remedy="Make the schedule over the true number of optimiser steps (examples x epochs / batch size, all "
    "processes together), or stop where it ends.",
    source="arithmetic; a cosine spends 6 % of its steps there, a line 1 %",
)
def learning_rate_spent(run: Run) -> Evidence | None:
    """More than one point in five, after the peak, has less than 1 % of the peak learning rate: no common schedule,
    linear or cosine, spends more than 6 % of the run there."""
    rate = run["learning_rate"]
    peak = float(rate.finite.max())
    if peak == 0:
        return ["learning_rate is 0 at every step"]
    after = rate.finite[int(rate.finite.argmax()) :]
    spent = int(np.sum(after < 0.01 * peak))
    if spent <= len(rate) / 5:
        return None
    since = rate.at[-spent]
    return [
        f"learning_rate is below 1 % of its peak of {figure(peak)} at {spent} of {len(rate)} points, from step "
        f"{since:.0f}"
    ]


@sign(
    "no-gradient",
    "critical",
    needs={"grad_norm": 5},
    cause="Nothing that is trained reaches the loss: frozen weights, an adapter that is switched off, a detached "
    "loss, or a policy that is also its own reference.",
    remedy="List the parameters that ask for a gradient; compare one of them before and after a step.",
    source="arithmetic: a weight without gradient does not change",
)
def no_gradient(run: Run) -> Evidence | None:
    """The gradient's norm is zero (below 1e-10) at more than half of all points and from the first on. Later zeros
    mean that everything is won or that all rewards are alike, which have signs of their own."""
    norm = run["grad_norm"]
    dead = int(np.sum(norm.finite < 1e-10))
    if norm.first >= 1e-10 or dead <= len(norm) / 2:
        return None
    return [f"grad_norm is 0 at {dead} of {len(norm)} points, from step {norm.at[0]:.0f} on"]


@sign(
    "gradient-vanished",
    "critical",
    needs={"grad_norm": ENOUGH, "loss": ENOUGH},
    cause="The model is broken: a learning rate far too high has driven its activations to where nothing passes "
    "back, and it says much the same whatever it is asked.",
    remedy="Begin anew with a learning rate three to ten times lower and a warm-up; no later step mends this.",
    source="Glorot & Bengio 2010 (saturation); Wortsman et al. 2023, arXiv:2309.14322",
    asked_of=without_rollouts,
)
def gradient_vanished(run: Run) -> Evidence | None:
    """The gradient's norm ends below 1 % of what it was at the first points, while the loss is still more than a third
    of what it was: there is much left to learn and nothing to learn it by. A loss that is nearly 0 has no gradient
    rightly. Not asked of rollouts."""
    norm, loss = run["grad_norm"], run["loss"]
    if loss.first <= 0 or loss.end < loss.first / 3:
        return None
    begun = float(np.median(norm.finite[:3]))
    if begun < 1e-10 or float(np.median(norm.late)) >= 0.01 * begun:
        return None
    return [
        f"grad_norm {figure(begun)} at first, {norm.told()} at the end",
        f"loss {figure(loss.first)} at first, {loss.told()}",
    ]


@sign(
    "gradient-always-clipped",
    "minor",
    needs={"grad_norm": ENOUGH, "loss": ENOUGH},
    cause="The clip is far below the gradients of this loss (summed log-probabilities have large ones), so that "
    "every step has the same length whatever its batch says, and the learning rate alone decides.",
    remedy="Raise the clipping norm to about the median of grad_norm (the DPO authors use 10), or lower the "
    "learning rate.",
    source="Zhang et al. 2019, arXiv:1905.11881; eric-mitchell/direct-preference-optimization (max_grad_norm 10)",
)
def gradient_always_clipped(run: Run) -> Evidence | None:
    """At 95 % of all points the gradient is longer than the clip, at the median three times as long, and the loss
    stands still or climbs for sure (of rollouts: the reward falls). Clipping alone is no sign: Adam does not feel a
    factor."""
    norm = run["grad_norm"]
    limit = float(run.settings.get("max_grad_norm", MAX_GRAD_NORM))
    clipped = int(np.sum(norm.finite > limit))
    worse = run["reward"].direction < 0 if run.has_rollouts else _climb(run) is not None or loss_flat(run) is not None
    if not worse or clipped < 0.95 * len(norm) or np.median(norm.finite) < 3 * limit:
        return None
    assumed = "" if "max_grad_norm" in run.settings else " (the usual one; this run does not say its own)"
    return [
        f"grad_norm is above {figure(limit)}{assumed} at {clipped} of {len(norm)} points, at the median "
        f"{figure(float(np.median(norm.finite)))}",
        f"reward {run['reward'].course()}" if run.has_rollouts else f"loss {run['loss'].course()}",
    ]


@sign(
    "no-warm-up",
    "minor",
    needs={"learning_rate": 50, "loss": 50},
    cause="The first steps have the full learning rate while Adam's second moments are still unknown, and overshoot.",
    remedy="Warm up over 5 to 10 % of the steps.",
    source="Goyal et al. 2017, arXiv:1706.02677; Ma & Yarats 2019, arXiv:1910.04209",
    asked_of=without_rollouts,
)
def no_warm_up(run: Run) -> Evidence | None:
    """The first learning rate logged is already 90 % of the peak, and the loss of the first tenth (from its second
    point on) is for sure higher than that of the second fifth, at the median by 30 %, and by 30 % higher than at the
    first point. A full first step that does no harm is no sign."""
    rate, loss = run["learning_rate"], run["loss"]
    early = loss.finite[1 : max(6, len(loss) // 10)]
    later = np.array_split(loss.finite, 5)[1]
    height = float(np.median(early))
    if rate.first < 0.9 * rate.finite.max() or loss.first <= 0:
        return None
    if height < 1.3 * max(loss.first, float(np.median(later))):
        return None
    if not _falls(early, later):
        return None
    return [
        f"learning_rate starts at {figure(rate.first)}, its peak",
        f"loss {figure(loss.first)} at step {loss.at[0]:.0f}, then {figure(height)} to step {loss.at[len(early)]:.0f}, "
        f"and {loss.told(1)} after it",
    ]


@sign(
    "validation-loss-rises",
    "serious",
    needs={"loss": ENOUGH, "validation_loss": 4},
    cause="Overfitting: what is still learnt from the training data no longer holds for others.",
    remedy="Take the checkpoint of the lowest validation loss; train for fewer epochs, at a lower rate, or on more "
    "data.",
    source="Prechelt 1998, Early Stopping - But When?",
    asked_of=without_rollouts,
)
def validation_loss_rises(run: Run) -> Evidence | None:
    """The validation loss has risen at two evaluations or more since its best, by 5 % in all, while the training loss
    falls for sure. One evaluation is noise."""
    loss, validation = run["loss"], run["validation_loss"]
    best = int(validation.finite.argmin())
    since = validation.finite[best:]
    if len(since) < 3 or loss.direction >= 0 or not np.all(since[1:] > since[0]) or since[-1] < 1.05 * since[0]:
        return None
    return [
        f"validation_loss {figure(since[0])} at step {validation.at[best]:.0f}, its best, then "
        + ", ".join(f"{figure(value)}" for value in since[1:][-5:]),
        f"loss {loss.course()}",
    ]


@sign(
    "memorised-epochs",
    "serious",
    needs={"loss": 2 * ENOUGH, "epoch": 2 * ENOUGH},
    cause="The loss falls where an epoch begins, not within it: the model knows the examples by heart and learns "
    "little from reading new ones.",
    remedy="Train for fewer epochs, at a lower rate, or with a smaller adapter; keep validation data and watch "
    "their loss.",
    source="Howard & Whitaker 2023, Can LLMs learn from a single example?; Ouyang et al. 2022, arXiv:2203.02155 "
    "(sec. 3.5)",
    asked_of=text_alone,
)
def memorised_epochs(run: Run) -> Evidence | None:
    """From the last half of an epoch to the first half of the next the loss falls for sure, by 20 %, and more than
    twice as much as within the epoch: a staircase. Needs 20 points in both epochs. Not asked of rollouts, and of
    preferences not, whose loss goes to zero anyway."""
    loss, epochs = run["loss"], run["epoch"]
    _, ours, theirs = np.intersect1d(loss.at, epochs.at, return_indices=True)
    # A row logged at the end of epoch 1 has epoch 1.0 and belongs to it.
    number = np.ceil(epochs.finite[theirs] - 1e-9)
    parts = [(epoch, loss.finite[ours][number == epoch]) for epoch in np.unique(number)]
    evidence = []
    for (epoch, old), (_, new) in pairwise(parts):
        if min(len(old), len(new)) < ENOUGH:
            continue
        last, after = old[len(old) // 2 :], new[: len(new) // 2]
        early, late, next_ = (float(np.median(part)) for part in (old[: len(old) // 2], last, after))
        fallen = max(0.0, early - late)
        if late - next_ < max(0.2 * late, 2 * fallen) or not _falls(last, after):
            continue
        evidence.append(
            f"loss {figure(late)} at the end of epoch {epoch:.0f}, {figure(next_)} at the start of the next; within "
            f"epoch {epoch:.0f} it fell by {figure(fallen)}"
        )
    return evidence or None


def _climb(run: Run) -> tuple[int, float] | None:
    """(the best fifth, how many times its loss the last one's is), if the loss rises for sure from there on."""
    loss = run["loss"]
    best = int(np.argmin(loss.fifths))
    if loss.fifths[best] <= 0 or best == 4 or direction(loss.since(best)) <= 0:
        return None
    return best, loss.end / loss.fifths[best]


def _peak_rate(run: Run) -> Evidence:
    return [f"peak learning_rate {figure(float(run['learning_rate'].finite.max()))}"] if "learning_rate" in run else []


def _falls(before: Numbers, after: Numbers) -> bool:
    """Whether one stretch is above the next beyond chance (Mann and Whitney's test)."""
    return bool(mannwhitneyu(before, after, alternative="greater").pvalue < SURE)
