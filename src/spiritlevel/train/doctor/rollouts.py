"""Signs of training on the policy's own replies: PPO, RLOO, GRPO."""

from __future__ import annotations

import numpy as np
from scipy.stats import kendalltau

from spiritlevel.train.doctor.curve import SURE, Run, direction, together
from spiritlevel.train.doctor.sign import ENOUGH, Evidence, sign


def without_a_value_model(run: Run) -> bool:
    """RLOO, GRPO: a reply's advantage is what it has over the others of its group."""
    return "value_loss" not in run


@sign(
    "kl-blow-up",
    "critical",
    needs={"kl": ENOUGH},
    cause="The policy has left its reference: the KL penalty is too weak or the learning rate too high, and the "
    "reward is being exploited where the reward model knows nothing.",
    remedy="Raise the KL coefficient (adaptive: target about 6 nats), lower the learning rate, stop at the KL "
    "where a second judge still agrees; read replies of the last steps.",
    source="Ziegler et al. 2019, arXiv:1909.08593 (target 6); Gao et al. 2022, arXiv:2210.10760",
)
def kl_blow_up(run: Run) -> Evidence | None:
    """The KL rises for sure, ends above 30 nats a reply (five times the usual target; where lengths are logged also
    above 0.3 a token, since long replies add up) and is still speeding away: half as high again as in the middle
    fifth, or above 100."""
    kl = run["kl"]
    if kl.direction <= 0 or kl.end <= 30 or (kl.end < 1.5 * kl.fifths[2] and kl.end <= 100):
        return None
    if "length" in run and kl.end / max(1.0, run["length"].end) <= 0.3:
        return None
    return [f"kl {kl.course()}", *_course(run, "kl_coefficient"), *_course(run, "reward")]


@sign(
    "negative-kl",
    "critical",
    needs={"kl": ENOUGH},
    cause="Replies are not drawn from the policy whose log-probabilities are used: top-k, top-p, min_length or a "
    "suppressed EOS in sampling, a temperature that is not in the log-probabilities, dropout, or padding that is "
    "scored.",
    remedy="Sample with temperature alone (top_k 0, top_p 1), divide the logits by the same temperature when "
    "scoring, switch dropout off, mask padding. The penalty is a reward as long as this lasts.",
    source="trl#235, trl#925, trl#1005; Huang et al. 2024, arXiv:2403.17031",
)
def negative_kl(run: Run) -> Evidence | None:
    """The mean KL of a batch is negative at four of five points of the last two fifths, and at their median below −0.5
    nats. A KL can't be negative; its estimate is only by chance, and then by little and at the beginning."""
    kl = run["kl"]
    below = float(np.mean(kl.late < 0))
    if below < 0.8 or np.median(kl.late) >= -0.5:
        return None
    return [f"kl {kl.course()}", f"negative at {below:.0%} of the points of the last two fifths"]


@sign(
    "off-policy-ratio",
    "critical",
    needs={"ratio": ENOUGH},
    cause="The log-probabilities of sampling and of training disagree before anything was learnt: another "
    "temperature, a sampling filter, dropout, another precision or engine.",
    remedy="Recompute the old log-probabilities with the trainer; the ratio of the first mini-batch must be 1 to 1e-5.",
    source="Huang et al. 2024, arXiv:2403.17031; trl#4159, trl#6789 (mean ratio 0.896 at top_p 0.8)",
)
def off_policy_ratio(run: Run) -> Evidence | None:
    """In the first fifth already, and still in the last, the mean probability ratio is off 1 by more than 0.05. Its
    expectation under the sampling policy is 1 whatever is learnt between two rollouts."""
    ratio = run["ratio"]
    if abs(ratio.start - 1) <= 0.05 or abs(ratio.end - 1) <= 0.05:
        return None
    return [f"ratio {ratio.course()}"]


@sign(
    "everything-clipped",
    "serious",
    needs={"clip_fraction": ENOUGH},
    cause="Most tokens leave the trust region within one batch of rollouts and then have no gradient (dead "
    "clipping): steps too long, or too many epochs on the same rollouts.",
    remedy="Lower the learning rate, take fewer epochs or larger mini-batches per rollout, normalise advantages.",
    source="Schulman et al. 2017, arXiv:1707.06347; Engstrom et al. 2020, arXiv:2005.12729",
)
def everything_clipped(run: Run) -> Evidence | None:
    """At the median of the last two fifths more than 30 % of the tokens are clipped; 1 to 20 % is usual."""
    clipped = run["clip_fraction"]
    if float(np.median(clipped.late)) <= 0.3:
        return None
    return [f"clip_fraction {clipped.course()}", *_course(run, "kl")]


@sign(
    "policy-stands-still",
    "serious",
    needs={"kl": ENOUGH, "reward": ENOUGH},
    cause="The policy does not move: a learning rate too low, a KL coefficient so high that it undoes every step, "
    "or advantages that are all 0.",
    remedy="Raise the learning rate three- to tenfold; then lower the KL coefficient; look at reward_std and "
    "advantage_std.",
    source="Stiennon et al. 2020, arXiv:2009.01325 (reward against KL); Huang et al. 2024, arXiv:2403.17031",
)
def policy_stands_still(run: Run) -> Evidence | None:
    """Over the whole run no fifth has a KL beyond 0.05 nats a reply, and the reward does not rise for sure. What makes
    replies better moves them by more. A clip fraction of 0 (dead clipping) is told as evidence, alone it is no sign:
    with one step per rollout nothing can be clipped."""
    kl, reward = run["kl"], run["reward"]
    if max(map(abs, kl.fifths)) > 0.05 or reward.direction > 0:
        return None
    return [f"kl {kl.course()}", f"reward {reward.course()}", *_course(run, "clip_fraction")]


@sign(
    "reward-falls",
    "serious",
    needs={"reward": ENOUGH},
    cause="The policy gets worse at what it is trained for: a learning rate too high, a value function that "
    "misleads, a KL penalty that outweighs the score, or advantages of the wrong sign.",
    remedy="Lower the learning rate; warm the value function up on frozen rollouts; check the sign of the reward.",
    source="Huang et al. 2024, arXiv:2403.17031",
)
def reward_falls(run: Run) -> Evidence | None:
    """The reward falls for sure, by half of its own standard deviation between replies, or where that is not logged by
    three times the noise between neighbouring points."""
    reward = run["reward"]
    noise = 1.4826 * float(np.median(np.abs(np.diff(reward.finite)))) / 2**0.5
    least = 0.5 * run["reward_std"].start if "reward_std" in run and len(run["reward_std"]) >= ENOUGH else 3 * noise
    if reward.direction >= 0 or reward.start - reward.end < least:
        return None
    return [f"reward {reward.course()}", *_course(run, "kl")]


@sign(
    "reward-constant",
    "critical",
    needs={"reward_std": ENOUGH},
    cause="All replies of a batch have the same reward: the scorer fails and returns its default, never finds what "
    "it looks for, or reads an empty text.",
    remedy="Score ten replies by hand. If none can be right, begin with easier prompts or with SFT.",
    source="Yu et al. 2025, arXiv:2503.14476 (sec. 3.2)",
)
def reward_constant(run: Run) -> Evidence | None:
    """The standard deviation of the rewards is 0 (below 1e-6) at half of all points or more, from the first fifth
    on."""
    spread = run["reward_std"]
    dead = int(np.sum(spread.finite < 1e-6))
    if spread.start >= 1e-6 or dead < len(spread) / 2:
        return None
    return [f"reward_std is 0 at {dead} of {len(spread)} points", *_course(run, "reward")]


@sign(
    "groups-without-signal",
    "serious",
    needs={"groups_without_signal": ENOUGH},
    cause="In most groups all replies have the same reward, so they have no advantage and no gradient: the prompts "
    "are too easy, too hard, or the samples too alike.",
    remedy="Sample prompts that are solved sometimes (dynamic sampling), more replies a group, a higher "
    "temperature, or a reward with more steps.",
    source="Yu et al. 2025, arXiv:2503.14476 (DAPO, dynamic sampling)",
    asked_of=without_a_value_model,
)
def groups_without_signal(run: Run) -> Evidence | None:
    """At the median of the last two fifths half of the groups or more have rewards that are all equal: half of the
    sampling is for nothing. Not asked of PPO, whose value model compares replies to different prompts."""
    silent = run["groups_without_signal"]
    if float(np.median(silent.late)) < 0.5:
        return None
    return [f"groups_without_signal {silent.course()}", *_course(run, "reward")]


@sign(
    "entropy-collapse",
    "serious",
    needs={"entropy": ENOUGH, "reward": ENOUGH},
    cause="The policy has become nearly certain of every token and explores no more; what it has not found by now "
    "it will not find.",
    remedy="Clip higher above than below (epsilon_high 0.28), add an entropy or KL term, lower the learning rate, "
    "sample at temperature 1.",
    source="Yu et al. 2025, arXiv:2503.14476 (clip-higher); Cui et al. 2025, arXiv:2505.22617",
)
def entropy_collapse(run: Run) -> Evidence | None:
    """The entropy falls for sure to less than a fifth of what it was. SFT lowers it too and is not asked."""
    entropy = run["entropy"]
    if entropy.direction >= 0 or entropy.start <= 0 or entropy.end >= 0.2 * entropy.start:
        return None
    return [f"entropy {entropy.course()}", *_course(run, "reward")]


@sign(
    "length-hacking",
    "serious",
    needs={"reward": ENOUGH, "length": ENOUGH},
    cause="The reward pays for length: replies grow longer to score higher, not better.",
    remedy="Take length out of the reward (residual on length, or a penalty beyond a limit), compare at equal "
    "length, read the longest replies.",
    source="Singhal et al. 2023, arXiv:2310.03716; Dubois et al. 2024, arXiv:2404.04475",
)
def length_hacking(run: Run) -> Evidence | None:
    """Reward and length both rise for sure, the length by half, and from point to point the reward goes up where the
    length does (Kendall's tau of the differences above 0.2, for sure), so it is the length that is paid; or the
    replies grow into the limit: the share that ends by itself falls for sure by 10 points. Reasoning that grows longer
    is neither."""
    reward, length = run["reward"], run["length"]
    if reward.direction <= 0 or length.direction <= 0 or length.end < 1.5 * length.start:
        return None
    scores, tokens = together(reward, length)
    tau, p = kendalltau(np.diff(scores), np.diff(tokens))
    evidence = [f"length {length.course()}", f"reward {reward.course()}"]
    if tau > 0.2 and p < SURE:
        return [*evidence, f"from point to point reward and length go together: tau {tau:.2f}"]
    finished = run.curves.get("finished")
    if finished is None or len(finished) < ENOUGH or finished.direction >= 0 or finished.start - finished.end < 0.1:
        return None
    return [*evidence, f"finished {finished.course()}"]


@sign(
    "eos-never-learnt",
    "serious",
    needs={"finished": ENOUGH},
    cause="Hardly any reply ends by itself: the padding token is the EOS token and its loss was masked, no stop "
    "token is set, the template's end is not in the data, or the limit is too short.",
    remedy="Give the tokenizer a padding token of its own, keep EOS inside the loss of SFT, set the stop token, "
    "punish replies without EOS; look whether the limit fits.",
    source="Huang et al. 2024, arXiv:2403.17031 (EOS and padding); trl#5303",
)
def eos_never_learnt(run: Run) -> Evidence | None:
    """At the median of the last two fifths less than one reply in ten ends by EOS. Cut replies are scored for what
    they did not come to say."""
    finished = run["finished"]
    if float(np.median(finished.late)) >= 0.1:
        return None
    return [f"finished {finished.course()}", *_course(run, "length")]


@sign(
    "value-collapse",
    "serious",
    needs={"value_explained_variance": ENOUGH},
    cause="The value function predicts no better than a constant, so advantages are mere noise: its learning rate "
    "or clip is wrong, its head is badly begun, or rewards moved faster than it could follow.",
    remedy="Begin the value function from the reward model, give it a learning rate of its own and a warm-up, "
    "whiten or scale rewards; or use RLOO or GRPO, which need none.",
    source="Huang et al. 2024, arXiv:2403.17031; Yuan et al. 2025, arXiv:2503.01491",
)
def value_collapse(run: Run) -> Evidence | None:
    """At the median of the last two fifths the explained variance is below 0, worse than a constant; or a fifth of the
    run had more than 0.3, and it fell for sure since then, to below 0.1 at the end."""
    explained = run["value_explained_variance"]
    late, best = float(np.median(explained.late)), int(np.argmax(explained.fifths))
    collapsed = explained.fifths[best] > 0.3 and explained.end < 0.1 and direction(explained.since(best)) < 0
    if late >= 0 and not collapsed:
        return None
    return [
        f"value_explained_variance {explained.told(best)} at its best, {explained.told()} at the end",
        *_course(run, "value_loss"),
    ]


@sign(
    "value-loss-rises",
    "serious",
    needs={"value_loss": ENOUGH},
    cause="The value function falls behind its targets: they grow (reward or KL out of scale) or its steps are too "
    "long.",
    remedy="Look at reward and KL first; then lower the value function's learning rate and scale or clip rewards.",
    source="Huang et al. 2024, arXiv:2403.17031",
)
def value_loss_rises(run: Run) -> Evidence | None:
    """The value loss rises for sure to three times what it was. It falls in healthy runs, or grows by less with the
    reward."""
    loss = run["value_loss"]
    if loss.direction <= 0 or loss.end < 3 * loss.start:
        return None
    return [f"value_loss {loss.course()}", *_course(run, "reward")]


def _course(run: Run, name: str) -> Evidence:
    return [f"{name} {run[name].course()}"] if name in run and len(run[name]) >= 5 else []
