"""A model whose weights are on this machine: chat rendering, batched sampling, forks."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from pickle import UnpicklingError
from queue import Queue
from threading import Thread
from typing import Any, Self

import torch
from jinja2 import TemplateError
from safetensors import SafetensorError, safe_open

from spiritlevel.chat import Chat, assistant, user
from spiritlevel.errors import SpiritLevelError
from spiritlevel.models.fork import Fork
from spiritlevel.models.reply import Reply
from spiritlevel.models.sampling import Sampling, decode, plan_prompts
from spiritlevel.models.scoring import ForkScores, score_batch, score_forks, score_tokens
from spiritlevel.store import digest_file, digest_json


class LocalModel:
    """A Hugging Face causal language model with its tokenizer.

    `name` is what the user called it, `folder` where its weights came from; `base`, if `folder` holds an adapter,
    where the weights came from that it adapts. task_type: what peft calls such a model.
    """

    task_type = "CAUSAL_LM"
    temperature = 1.0  # of the sampling whose log-probabilities `score` gives

    def __init__(
        self, model: Any, tokenizer: Any, *, name: str, folder: Path | None = None, base: Path | None = None
    ) -> None:
        self.model, self.tokenizer, self.name, self.folder, self.base = model, tokenizer, name, folder, base
        self.model.eval()

    def carrying(self, model: Any) -> Self:
        """The same with another model inside. What is trained is no longer what its files say: it has no folder, and
        no digest until it is saved."""
        other = copy(self)
        other.__dict__ = {name: value for name, value in vars(self).items() if name != "digest"}
        other.model, other.folder, other.base = model.eval(), None, None
        return other

    @property
    def device(self) -> torch.device:
        return self.model.get_input_embeddings().weight.device  # type: ignore[no-any-return]

    @property
    def dtype(self) -> torch.dtype:
        return self.model.get_input_embeddings().weight.dtype  # type: ignore[no-any-return]

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the weights and the files that decide how they are used, an adapter's base included, and the
        precision."""
        if self.folder is None:
            raise ValueError("a model that was not loaded from files has no digest")
        folders = [self.folder] if self.base is None else [self.folder, self.base]
        decisive = [path for folder in folders for path in _decisive(folder)]
        return digest_json([[(path.name, digest_file(path)) for path in decisive], str(self.dtype)])

    @property
    def context(self) -> int | None:
        """How many tokens it was made for, if its config says that."""
        found: int | None = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return found

    def check_context(self, lengths: Sequence[int], what: str) -> None:
        """Raises SpiritLevelError if one of `what`, which have these lengths in tokens, exceeds the context."""
        if self.context is not None and max(lengths, default=0) > self.context:
            count = sum(length > self.context for length in lengths)
            raise SpiritLevelError(
                f"{count} of {len(lengths)} {what} exceed the model's context of {self.context} tokens"
                f" (the longest has {max(lengths)})",
                where=self.name,
                remedy="Shorten them, or take a model with a longer context (max_position_embeddings in config.json).",
            )

    def check_room(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
        """Raises SpiritLevelError if so many new tokens after one of the prompts exceed the context."""
        self.check_context(
            [len(prompt) + max_new_tokens for prompt in prompts], f"prompts with {max_new_tokens} new tokens"
        )

    @cached_property
    def pad_token(self) -> int:
        """Any token will do: padding is masked and never read."""
        return int(self.tokenizer.pad_token_id or self.tokenizer.eos_token_id or 0)

    @cached_property
    def end_token(self) -> int:
        """The token that ends an assistant's turn: the first special token after its words."""
        chat: Chat = [user("Hello"), assistant("Good day")]
        rendered: str = self._render(chat, tokenize=False)
        tail = self.tokenizer(rendered.rpartition("Good day")[2], add_special_tokens=False)["input_ids"]
        # Not `all_special_ids`: it holds only the tokens that have a name, and Gemma's <end_of_turn> has none.
        special = {token for token, added in self.tokenizer.added_tokens_decoder.items() if added.special}
        end = next((token for token in tail if token in special), self.tokenizer.eos_token_id)
        if end is None:
            raise SpiritLevelError(
                "the tokenizer has no end token, and its chat template writes no special one after a reply",
                where=self.name,
                remedy="Name its `eos_token` in tokenizer_config.json.",
            )
        return int(end)

    @cached_property
    def stop_tokens(self) -> frozenset[int]:
        generation = getattr(self.model, "generation_config", None)  # a reward model has none
        configured = getattr(generation, "eos_token_id", None)
        more = configured if isinstance(configured, list) else [configured]
        return frozenset({self.end_token, self.tokenizer.eos_token_id, *more} - {None})

    def prompt_tokens(self, chat: Chat) -> tuple[int, ...]:
        """The chat rendered by the model's template, up to where the assistant begins to speak."""
        return tuple(self._render(chat, add_generation_prompt=True, return_dict=False))

    def reply_tokens(self, reply: str, *, finished: bool = True) -> tuple[int, ...]:
        """A reply's tokens, with the end-of-turn token unless it was cut short."""
        tokens = tuple(self.tokenizer(reply, add_special_tokens=False)["input_ids"])
        return (*tokens, self.end_token) if finished else tokens

    def reply_text(self, tokens: Sequence[int]) -> str:
        """The words of drawn tokens, without special ones."""
        return self.tokenizer.decode(tokens, skip_special_tokens=True).strip()  # type: ignore[no-any-return]

    def fork(self, chat: Chat, replies: Sequence[str]) -> Fork:
        return Fork(self.prompt_tokens(chat), tuple(self.reply_tokens(reply) for reply in replies))

    def score(self, forks: Sequence[Fork]) -> ForkScores:
        """Log-probabilities of all continuations, one micro-batch, with gradients if enabled."""
        return score_batch(self.model, forks, pad_token=self.pad_token, temperature=self.temperature)

    def score_all(self, forks: Sequence[Fork], *, token_budget: int = 4096) -> list[list[float]]:
        """log π(y|x) of every continuation of every fork, without gradients."""
        return score_forks(self.model, forks, pad_token=self.pad_token, token_budget=token_budget)

    def token_logprobs(
        self, forks: Sequence[Fork], *, temperature: float = 1.0, token_budget: int = 4096
    ) -> list[list[float]]:
        """The log-probability of every scored token of every fork, without gradients."""
        return score_tokens(
            self.model, forks, pad_token=self.pad_token, token_budget=token_budget, temperature=temperature
        )

    def plan(self, chats: Sequence[Chat]) -> list[list[int]]:
        """Indices in batches whose prompts share their beginnings, since a batch computes its common prefix once.

        The plan depends on the chats alone, so that a resumed run repeats it.
        """
        return plan_prompts([self.prompt_tokens(chat) for chat in chats])

    def generate(
        self,
        chats: Sequence[Chat],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seeds: Sequence[int] | None = None,
        on_finish: Callable[[int, Reply], None] | None = None,
    ) -> list[Reply]:
        """One reply a chat, in order. temperature 0 is greedy; a row's draws depend on its seed alone."""
        seeds = list(seeds) if seeds is not None else [0] * len(chats)
        sampling = Sampling(max_new_tokens, temperature, top_p)
        replies: dict[int, Reply] = {}
        for batch in self.plan(chats):
            prompts = [self.prompt_tokens(chats[index]) for index in batch]
            self.check_room(prompts, max_new_tokens)
            completions = decode(
                self.model,
                prompts,
                sampling,
                stop_tokens=self.stop_tokens,
                pad_token=self.pad_token,
                seeds=[seeds[index] for index in batch],
            )
            for index, completion in zip(batch, completions, strict=True):
                text = self.reply_text(completion.tokens)
                replies[index] = Reply(text, len(completion.tokens), completion.finished)
                if on_finish is not None:
                    on_finish(index, replies[index])
        return [replies[index] for index in range(len(chats))]

    def stream(
        self, chat: Chat, *, max_new_tokens: int, temperature: float = 0.0, top_p: float = 1.0, seed: int = 0
    ) -> Iterator[str]:
        """The reply piece by piece, as it is decoded."""
        prompt = self.prompt_tokens(chat)
        self.check_room([prompt], max_new_tokens)
        pieces: Queue[int | BaseException | None] = Queue()

        def work() -> None:
            try:
                decode(
                    self.model,
                    [prompt],
                    Sampling(max_new_tokens, temperature, top_p),
                    stop_tokens=self.stop_tokens,
                    pad_token=self.pad_token,
                    seeds=[seed],
                    on_token=lambda _, token: pieces.put(token),
                )
                pieces.put(None)
            except BaseException as error:
                pieces.put(error)

        worker = Thread(target=work, daemon=True)
        worker.start()
        tokens: list[int] = []
        text = shown = ""
        while (token := pieces.get()) is not None:
            if isinstance(token, BaseException):
                raise token
            tokens.append(token)
            text = self.tokenizer.decode(tokens, skip_special_tokens=True)
            # A character of several tokens shows as U+FFFD until it is whole.
            if not text.endswith("�"):
                yield text[len(shown) :]
                shown = text
        if text != shown:
            yield text[len(shown) :]
        worker.join()

    def save_settings(self, folder: Path) -> None:
        """What a saved model needs beside its weights and their configuration."""
        self.tokenizer.save_pretrained(folder)

    def close(self) -> None:
        """Nothing to release; here so that local and remote models are used alike."""

    def _render(self, chat: Chat, **settings: Any) -> Any:
        try:
            return self.tokenizer.apply_chat_template(chat, **settings)
        except TemplateError as error:
            roles = ", ".join(turn["role"] for turn in chat)
            raise SpiritLevelError(
                f"its chat template does not render a conversation of {roles}: {error}",
                where=self.name,
                remedy="Use a model whose template takes these roles in this order, or adapt this one's template"
                " (chat_template.jinja in its directory).",
            ) from None


# Where one of these is, no `.bin` is loaded.
_SAFETENSORS = {"model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors"}
_DECIDING = (
    "config.json",
    "adapter_config.json",
    "tokenizer.json",
    "generation_config.json",
    "tokenizer_config.json",
)


def _decisive(folder: Path) -> list[Path]:
    """The files of a model or adapter that decide what it answers."""
    files = sorted(folder.iterdir())
    older = () if any(path.name in _SAFETENSORS for path in files) else (".bin",)
    suffixes = (".safetensors", ".jinja", *older)
    return [path for path in files if path.suffix in suffixes or path.name in _DECIDING]


def best_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the hardware computes in it, float32 elsewhere."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if device.type == "cpu" and "avx512_bf16" in _cpu_flags():
        return torch.bfloat16
    return torch.float32


def best_device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))  # one each, of several processes
    return torch.device("cpu")


@dataclass(frozen=True)
class Loaded:
    """What a model directory holds; base: the directory of what it adapts, if it holds an adapter."""

    model: Any
    tokenizer: Any
    base: Path | None


def load_local(
    folder: Path, *, name: str, dtype: str | None = None, resolve: Callable[[str], Path] = Path
) -> LocalModel:
    """Load a model directory, or an adapter directory with its base found by `resolve`."""
    from transformers import AutoModelForCausalLM

    loaded = load_weights(folder, AutoModelForCausalLM, LocalModel.task_type, dtype=dtype, resolve=resolve)
    return LocalModel(loaded.model, loaded.tokenizer, name=name, folder=folder, base=loaded.base)


def load_weights(
    folder: Path,
    kind: Any,
    task_type: str,
    *,
    dtype: str | None = None,
    resolve: Callable[[str], Path] = Path,
    **settings: Any,
) -> Loaded:
    """A model of the transformers' auto class `kind` and its tokenizer, on the best device.

    task_type: what an adapter of such models has. Raises SpiritLevelError saying what is missing or damaged.
    """
    from transformers import AutoTokenizer

    quiet_transformers()
    device = best_device()
    precision = getattr(torch, dtype) if dtype else best_dtype(device)
    adapter = folder / "adapter_config.json"
    base: Path | None = None
    elsewhere: Sequence[str] = ()  # the modules whose weights the adapter has
    try:
        if adapter.exists() and not (folder / "config.json").exists():
            from peft import PeftModel

            written = json.loads(adapter.read_text())
            check_task_type(written, task_type, folder)
            base, elsewhere = resolve(written["base_model_name_or_path"]), written.get("modules_to_save") or ()
            trunk, info = kind.from_pretrained(base, dtype=precision, output_loading_info=True, **settings)
            model: Any = PeftModel.from_pretrained(trunk, folder, autocast_adapter_dtype=False)
            words = folder if (folder / "tokenizer.json").exists() else base
        else:
            # An adapter on this model will name its place, from wherever it is read.
            place = folder.resolve()
            model, info = kind.from_pretrained(place, dtype=precision, output_loading_info=True, **settings)
            words = folder
        tokenizer = AutoTokenizer.from_pretrained(words)
    except SafetensorError as error:
        raise SpiritLevelError(
            f"the weights can't be read: {error}",
            where=str(_damaged([folder, base or folder]) or folder),
            remedy="The file is damaged or was cut short: copy, download or make it once more.",
        ) from None
    except (OSError, ValueError, KeyError, RuntimeError, EOFError, UnpicklingError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise SpiritLevelError(
            f"the model can't be loaded: {reason}",
            where=str(folder),
            remedy="The directory needs config.json, safetensors weights and a tokenizer that match each other.",
        ) from None
    if missing := {key for key in info["missing_keys"] if not {*key.split(".")} & {*elsewhere}}:
        raise SpiritLevelError(
            f"the weights lack {min(missing)}" + (f" and {len(missing) - 1} more" if len(missing) > 1 else ""),
            where=str(base or folder),
            remedy="They are of another kind of model, or a file of them is missing or was cut short.",
        )
    if tokenizer.chat_template is None:
        raise SpiritLevelError(
            "the tokenizer has no chat template, so a conversation can't be rendered",
            where=str(folder),
            remedy="Use an instruct model, or add chat_template.jinja to the directory.",
        )
    return Loaded(model.to(device), tokenizer, base)


def check_task_type(adapter: dict[str, Any], wanted: str, folder: Path) -> None:
    """Raises SpiritLevelError unless the adapter in `folder`, of these settings, is of a model of this kind."""
    found = adapter.get("task_type") or LocalModel.task_type
    if found != wanted:
        raise SpiritLevelError(
            f"is an adapter of task type {found}, where {wanted} is needed",
            where=str(folder),
            remedy="A language model's is CAUSAL_LM and a reward model's SEQ_CLS: name another folder.",
        )


def _damaged(folders: Sequence[Path]) -> Path | None:
    """The first safetensors file that does not hold what its header says; the error itself names no file."""
    for path in (path for folder in folders for path in sorted(folder.glob("*.safetensors"))):
        try:
            with safe_open(path, framework="pt"):
                pass
        except SafetensorError:
            return path
    return None


def quiet_transformers() -> None:
    """No advice and no bars from the library: Spirit Level tells what happens."""
    from transformers.utils import logging

    # peft still asks transformers for things by their old names.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def _cpu_flags() -> str:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return ""
    return next((line for line in info.read_text().splitlines() if line.startswith("flags")), "")
