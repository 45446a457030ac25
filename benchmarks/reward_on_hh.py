"""A reward model on HH-RLHF's harmlessness pairs: accuracy on pairs it has not seen, beside a judge of length.

The file is split by a digest of each prompt, so that no conversation is on both sides: four fifths train, one fifth
judges. SmolLM2-135M-Instruct, LoRA, one epoch. People agree with these labels in about 70 of 100 cases (Bai et al.
2022, arXiv:2204.05862), so an accuracy far above that would be a fault, not a success.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
import time
from pathlib import Path

from hh_rlhf import DEFAULT_DATA, read_all_pairs
from measured import RESULTS, write_result
from spiritlevel.data import Preference
from spiritlevel.models import PACKAGED, RewardModel, open_local
from spiritlevel.train import LoraSettings, Reward, TrainConfig, add_lora, reward_quality, train


def judges(record: Preference) -> bool:
    """Whether a record belongs to the held-out fifth."""
    return hashlib.sha256(json.dumps(record.chat).encode()).digest()[0] < 256 / 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA)
    parser.add_argument("--characters", type=int, default=1500, help="Longer pairs are left out.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--out", type=Path, default=RESULTS / "reward_on_hh.json")
    given = parser.parse_args()
    records = [Preference.model_validate(pair) for pair in read_all_pairs(given.data, given.characters)]
    held_out = [record for record in records if judges(record)]
    taught = [record for record in records if not judges(record)]
    base = open_local(PACKAGED)
    objective = Reward(centre_weight=0.01)
    examples = objective.examples(taught, base)
    student = add_lora(RewardModel.on(base, seed=given.seed), LoraSettings(), seed=given.seed)
    config = TrainConfig(learning_rate=given.lr, epochs=1, batch_size=16, seed=given.seed)
    before = reward_quality(student, held_out)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        history = train(student, objective, examples, config, Path(folder))
    seconds = time.monotonic() - started
    after = reward_quality(student, held_out)
    write_result(
        given.out,
        pairs={"trained": len(taught), "held_out": len(held_out)},
        settings={"learning_rate": given.lr, "seed": given.seed, "characters": given.characters},
        seconds=seconds,
        pairs_per_second=len(taught) / seconds,
        last_loss=sum(row["loss"] for row in history[-10:]) / len(history[-10:]),
        untrained=before.as_json(),
        trained=after.as_json(),
    )
    for name, quality in (("untrained", before), ("trained", after)):
        accuracy, length = quality.accuracy, quality.length_accuracy
        print(
            f"{name:10} accuracy {accuracy.value:.1%} ({accuracy.low:.1%} to {accuracy.high:.1%}), longer reply"
            f" {length.value:.1%}, calibration error {quality.calibration_error:.3f}, Brier {quality.brier:.3f},"
            f" correlation with length {quality.length_correlation:+.2f}"
        )
    print(f"{len(taught)} pairs in {seconds:.0f} s, {len(held_out)} held out")


if __name__ == "__main__":
    main()
