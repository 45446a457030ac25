"""What `spiritlevel train` does once its options are read: on records, or on rollouts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from spiritlevel.cli.processes import share_with
from spiritlevel.cli.terminal import TerminalProgress, err, out
from spiritlevel.errors import SpiritLevelError

if TYPE_CHECKING:
    from spiritlevel.chat import Chat
    from spiritlevel.data import Preference
    from spiritlevel.models import VLLM, LocalModel, RewardModel
    from spiritlevel.train import LoraSettings, RewardSource, StepMetrics, TrainConfig

CHARTER_SUFFIXES = (".yaml", ".yml")


def train_on_records(method: str, own: dict[str, Any], given: SimpleNamespace) -> None:
    """given: the options of `RECORDS` and `COMMON` in `cli/train.py`; own: the objective's."""
    _check(given)
    share_with(given.processes)
    from accelerate import PartialState

    from spiritlevel.data import Preference, read_records
    from spiritlevel.models import RewardModel
    from spiritlevel.store import ContentStore
    from spiritlevel.train import OBJECTIVES, add_lora, open_base, prepare_examples, save_trained, train

    objective = OBJECTIVES[method](**own)
    records = read_records(given.data, objective.reads)
    held_out = read_records(given.validation, objective.reads) if given.validation else []
    base = open_base(given.model)
    progress = TerminalProgress()
    with progress.stage("reference log-probabilities", len(records) + len(held_out)) as advance:
        store = ContentStore(given.out / "store")
        examples, validation = (
            prepare_examples(base, objective, part, store=store, on_progress=advance) if part else []
            for part in (records, held_out)
        )
    student: LocalModel = RewardModel.on(base, seed=given.seed) if method == "reward" else base
    student = add_lora(student, _lora(given), seed=given.seed) if given.rank else student
    with progress.stage(f"train {method}"):
        train(
            student, objective, examples, _settings(given), given.out, validation=validation,
            on_step=_watch(progress, given),
        )  # fmt: skip
    if not PartialState().is_main_process:
        return
    if isinstance(student, RewardModel):
        forks = [example.fork for example in examples]
        with progress.stage("normalise rewards", len(forks)) as advance:
            rewards = student.rewards(forks, token_budget=given.token_budget, on_progress=advance)
        student.normalise([reward for of_prompt in rewards for reward in of_prompt])
        _judge_reward_model(student, [one for one in held_out if isinstance(one, Preference)], given, progress)
    save_trained(student, given.out / "model", form="merged" if given.merge else "adapter")
    _say_what_was_written(given, chat=method != "reward")


def train_on_rollouts(method: str, own: dict[str, Any], given: SimpleNamespace) -> None:
    """given: the options of `ROLLOUTS` and `COMMON` in `cli/train.py`; own: the objective's."""
    _check(given)
    if not given.rank:
        raise SpiritLevelError(
            "learning from rollouts needs an adapter: the base beside it is the reference",
            remedy="Choose a rank above 0.",
        )
    share_with(given.processes)
    from accelerate import PartialState

    from spiritlevel.train import (
        ONLINE,
        ActorCritic,
        OnlineConfig,
        add_lora,
        open_base,
        policy_alone,
        save_trained,
        train_online,
        verify_rollouts,
    )

    if method == "grpo":
        own = own | {"max_new_tokens": given.max_new_tokens}
    objective = ONLINE[method](**own)
    chats = read_chats(given.prompts)
    base = open_base(given.model)
    verify_rollouts(base, chats, max_new_tokens=given.max_new_tokens)
    policy = add_lora(base, _lora(given), seed=given.seed)
    if objective.needs_values:
        policy = ActorCritic.on(policy, _lora(given), seed=given.seed + 1)
    reward = open_reward(given.reward, policy, base=base)
    online = OnlineConfig(
        iterations=given.iterations, prompts=given.prompts_each, samples=given.samples,
        max_new_tokens=given.max_new_tokens, temperature=given.temperature, unfinished_reward=given.unfinished_reward,
    )  # fmt: skip
    progress = TerminalProgress()
    with _engine(given) as engine, progress.stage(f"train {method}"):
        train_online(
            policy, objective, chats, reward, online, _settings(given), given.out,
            engine=engine, on_step=_watch(progress, given),
        )  # fmt: skip
    if PartialState().is_main_process:
        save_trained(policy_alone(policy), given.out / "model", form="merged" if given.merge else "adapter")
        _say_what_was_written(given, chat=True)


def _engine(given: SimpleNamespace) -> AbstractContextManager[VLLM | None]:
    """What draws the replies; None: the model that is trained. Of several processes only the first asks a server."""
    from accelerate import PartialState

    from spiritlevel.models import VLLM

    if given.engine and PartialState().is_main_process:
        return closing(VLLM(given.engine, given.out / "engine"))
    return nullcontext()


def _judge_reward_model(
    model: RewardModel, records: Sequence[Preference], given: SimpleNamespace, progress: TerminalProgress
) -> None:
    """How good it is on the pairs of `--validation`: a table, and `quality.json` beside the model."""
    if not records:
        return
    from spiritlevel.store import write_json
    from spiritlevel.train import reward_quality

    with progress.stage("judge the reward model", len(records)) as advance:
        quality = reward_quality(model, records, token_budget=given.token_budget, on_progress=advance)
    write_json(given.out / "quality.json", quality.as_json())
    table = Table("on held-out pairs", "", title=f"{quality.accuracy.n} pairs of {escape(str(given.validation))}")
    for name, rate in (("accuracy", quality.accuracy), ("accuracy of the longer reply", quality.length_accuracy)):
        table.add_row(name, f"{rate.value:.1%} ({rate.low:.1%} to {rate.high:.1%})")
    table.add_row("expected calibration error", f"{quality.calibration_error:.3f}")
    table.add_row("Brier score", f"{quality.brier:.3f}")
    table.add_row("rank correlation of reward and length", f"{quality.length_correlation:+.2f}")
    out.print(table)


def _check(given: SimpleNamespace) -> None:
    if given.rank == 0 and not given.merge:
        raise SpiritLevelError(
            "`--rank 0` trains all weights, so there is no adapter to write",
            remedy="Leave `--adapter` out, or choose a rank above 0.",
        )
    if given.rank == 0 and (given.lora, given.alpha, given.modules) != ("lora", None, "all-linear"):
        raise SpiritLevelError(
            "`--rank 0` trains all weights, so there is no adapter to set up",
            remedy="Leave `--lora`, `--alpha` and `--modules` out, or choose a rank above 0.",
        )


def _settings(given: SimpleNamespace) -> TrainConfig:
    from spiritlevel.train import TrainConfig

    return TrainConfig(
        learning_rate=given.lr, epochs=given.epochs, batch_size=given.batch_size, token_budget=given.token_budget,
        max_length=given.max_length, schedule=given.schedule, seed=given.seed, checkpointing=given.checkpointing,
        shard=getattr(given, "shard", False),
    )  # fmt: skip


def _lora(given: SimpleNamespace) -> LoraSettings:
    from spiritlevel.train import LoraSettings

    # At rank 16 both scales are 2; LoRA's stays so, rsLoRA's falls with √rank.
    usual = 8 if given.lora == "rslora" else 2 * given.rank
    names = tuple(name.strip() for name in given.modules.split(","))
    modules: Any = "all-linear" if given.modules == "all-linear" else names
    return LoraSettings(given.rank, given.alpha or usual, modules, given.lora)


def read_chats(source: Path) -> list[Chat]:
    """The prompts of a file of records of any kind, or of a charter's train probes."""
    from spiritlevel.charter import load_charter, read_probes
    from spiritlevel.chat import user
    from spiritlevel.data import read_prompts

    if source.is_dir() or source.suffix in CHARTER_SUFFIXES:
        return [[user(probe.prompt)] for probe in read_probes(load_charter(source), "train")]
    return read_prompts(source)


def open_reward(spec: str, policy: LocalModel, *, base: LocalModel) -> RewardSource:
    """base: the model that the policy's adapter stands on, for a reward adapter to stand beside it."""
    from spiritlevel.charter import load_charter
    from spiritlevel.models import open_reward_model
    from spiritlevel.train import SharedReward, charter_reward, function_reward, load_function, model_reward

    path = Path(spec)
    if path.suffix in CHARTER_SUFFIXES or (path / "charter.yaml").exists():
        return charter_reward(load_charter(path))
    if (path / "adapter_config.json").exists() and base.folder is not None and policy is not base:
        return model_reward(SharedReward.beside(policy, base.folder, path), policy=policy)
    if path.is_dir():
        return model_reward(open_reward_model(path), policy=policy)
    return function_reward(load_function(spec), name=spec)


def _say_what_was_written(given: SimpleNamespace, *, chat: bool) -> None:
    folder = given.out / "model"
    hint = f"; try it: spiritlevel chat --model {folder}" if chat else ""
    err.print(f"wrote {folder}{hint}", markup=False, soft_wrap=True)


def _watch(progress: TerminalProgress, given: SimpleNamespace) -> Callable[[StepMetrics], None]:
    board = tensorboard(given.out) if given.tensorboard else None

    def on_step(metrics: StepMetrics) -> None:
        progress.step(metrics)
        if board is not None:
            board(metrics)

    return on_step


def tensorboard(folder: Path) -> Callable[[StepMetrics], None]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise SpiritLevelError(
            "TensorBoard is not installed",
            remedy="pip install 'spiritlevel[tensorboard]', or leave the flag out.",
        ) from None
    writer = SummaryWriter(folder / "tensorboard")

    def write(metrics: StepMetrics) -> None:
        for name, value in metrics.items():
            if name not in ("step", "steps"):
                writer.add_scalar(f"train/{name}", value, int(metrics["step"]))
        writer.flush()

    return write
