"""A model's tokenizer and chat template, and what is wrong with them whatever the data."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from spiritlevel.chat import Message, assistant, system, user
from spiritlevel.errors import SpiritLevelError
from spiritlevel.models import PACKAGED, model_folder
from spiritlevel.models.local import quiet_transformers

_ASKED, _SAID, _RULE = "Hello", "Good day", "Be brief"


@dataclass(frozen=True)
class Fault:
    """Something in a tokenizer or its template that spoils training unnoticed. evidence: what was seen."""

    name: str
    title: str
    evidence: str
    advice: str


def open_tokenizer(spec: str) -> Any:
    """The tokenizer of a model directory, an adapter, a hub id or the packaged model; its weights are not read."""
    from transformers import AutoTokenizer

    quiet_transformers()
    source = str(model_folder(spec)) if spec == PACKAGED else spec
    adapter = Path(source) / "adapter_config.json"
    try:
        if adapter.exists() and not (Path(source) / "tokenizer_config.json").exists():
            return open_tokenizer(str(json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"]))
        tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, KeyError) as error:
        raise SpiritLevelError(
            f"there is no tokenizer that can be loaded: {str(error).partition(chr(10))[0]}",
            where=spec,
            remedy=f"Name {PACKAGED}, a directory with tokenizer.json, or a hub id (owner/name).",
        ) from None
    tokenizer.name_or_path = spec  # as the user called it
    return tokenizer


def end_of_turn(tokenizer: Any) -> int | None:
    """The token that ends the assistant's turn: the first special token that the template writes after its words."""
    if tokenizer.chat_template is None:
        return _optional_int(tokenizer.eos_token_id)
    rendered = _rendered(tokenizer, user(_ASKED), assistant(_SAID))
    tail = tokenizer(rendered.rpartition(_SAID)[2], add_special_tokens=False)["input_ids"]
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    return _optional_int(next((token for token in tail if token in special), None))


def _rendered(tokenizer: Any, *chat: Message, generation_prompt: bool = False) -> str:
    try:
        return str(tokenizer.apply_chat_template(list(chat), tokenize=False, add_generation_prompt=generation_prompt))
    except TemplateError as error:
        raise SpiritLevelError(
            f"its chat template does not render a question and an answer: {error}", where=tokenizer.name_or_path
        ) from None


def template_faults(tokenizer: Any) -> list[Fault]:
    """What is wrong with a tokenizer and its template, whatever the data. Each is found by trying."""
    faults: list[Fault | None] = [_padding(tokenizer)]
    if tokenizer.chat_template is None:
        advice = "Train an instruct model, or give this one a chat_template.jinja; TRL would fail on conversations."
        faults.append(Fault("no_template", "No chat template", "the tokenizer has none", advice))
    else:
        faults += [_bos(tokenizer), _end(tokenizer), _generation_prompt(tokenizer), _system(tokenizer)]
    return [fault for fault in faults if fault is not None]


def _padding(tokenizer: Any) -> Fault | None:
    pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
    if pad is not None and pad != eos:
        return None
    evidence = "there is no pad token, so trainers take the end token" if pad is None else f"both are token {pad}"
    advice = (
        "Give the tokenizer a pad token of its own. A trainer that masks padding by token masks the end token too:"
        " the model never learns to stop, and a reward model reads its score one token early."
    )
    return Fault("pad_is_eos", "Padding is the end token", evidence, advice)


def _bos(tokenizer: Any) -> Fault | None:
    bos = tokenizer.bos_token_id
    if bos is None:
        return None
    rendered = _rendered(tokenizer, user(_ASKED), assistant(_SAID))
    if tokenizer(rendered)["input_ids"][:2] == [bos, bos]:
        evidence = f"the template writes {tokenizer.bos_token!r} and the tokenizer adds it again"
        advice = (
            "Tokenize rendered conversations with add_special_tokens=False, or at once with apply_chat_template"
            " (TRL and Spirit Level do); don't store rendered text as a plain-text data set."
        )
        return Fault("double_bos", "Two start tokens", evidence, advice)
    alone = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    if tokenizer(_ASKED)["input_ids"][:1] == [bos] != alone[:1]:
        evidence = f"plain text begins with {tokenizer.bos_token!r}, a rendered conversation does not"
        return Fault("no_bos", "No start token", evidence, "Compare with the template that the model's makers publish.")
    return None


def _end(tokenizer: Any) -> Fault | None:
    end, eos = end_of_turn(tokenizer), tokenizer.eos_token_id
    if end is None:
        advice = "Add the end token after the assistant's words in the template: without it no reply learns to stop."
        return Fault("no_end", "Replies have no end token", "the template writes none after the assistant", advice)
    if end != eos:
        names = tokenizer.convert_ids_to_tokens([end, eos] if eos is not None else [end])
        evidence = f"a turn ends with {names[0]!r}, the tokenizer's end token is {names[-1]!r}"
        advice = "Let generation stop at both (`eos_token_id` in generation_config.json), or replies run on."
        return Fault("other_end", "A turn ends with another token than the tokenizer's", evidence, advice)
    return None


def _generation_prompt(tokenizer: Any) -> Fault | None:
    plain, full = _rendered(tokenizer, user(_ASKED)), _rendered(tokenizer, user(_ASKED), assistant(_SAID))
    asked = _rendered(tokenizer, user(_ASKED), generation_prompt=True)
    advice = "Mend the template: at run time the model is asked in other tokens than it was trained on."
    if not full.startswith(asked):
        evidence = "with the generation prompt, the prompt is not how the whole conversation begins"
        return Fault("not_a_prefix", "The prompt is no prefix", evidence, advice)
    if plain == asked and not full[len(asked) :].startswith(_SAID):
        evidence = "add_generation_prompt changes nothing, and the assistant's header counts as its reply"
        return Fault("no_generation_prompt", "No generation prompt", evidence, advice)
    return None


def _system(tokenizer: Any) -> Fault | None:
    try:
        rendered = tokenizer.apply_chat_template([system(_RULE), user(_ASKED), assistant(_SAID)], tokenize=False)
    except TemplateError as error:
        evidence = f"the template says: {error}"
    else:
        if _RULE in rendered:
            return None
        evidence = "the template leaves it out without a word"
    advice = "Put what the system message says into the person's first message, or take a model that knows the role."
    return Fault("no_system", "No system role", evidence, advice)


def _optional_int(token: Any) -> int | None:
    return None if token is None else int(token)
