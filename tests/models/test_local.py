"""A local model: rendering, generating, streaming, remembering."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from spiritlevel.chat import Chat, assistant, system, user
from spiritlevel.errors import SpiritLevelError
from spiritlevel.models import Fork, InProcess, LocalModel, Sampling, answer_all, local, open_local
from spiritlevel.store import ContentStore
from spiritlevel.train import LoraSettings, add_lora, save_trained
from tiny import END, OPENING, START, build_gpt2, build_llama, build_model, build_tokenizer, save_model

MODEL = build_model()
CHATS: list[Chat] = [
    [user("hello")],
    [system("be the one"), user("hello")],
    [user("in the user"), assistant("on"), user("hello the 🙂")],
    [user("hello")],
]
texts = st.text(min_size=1, max_size=20)
# A template may trim; a reply that begins with a newline may merge with the template's own.
replies = texts.map(str.strip).filter(bool)
chats = st.lists(texts, min_size=1, max_size=4).map(
    lambda words: [(user, assistant)[index % 2](text) for index, text in enumerate(words)]
)


def rendered(chat: Chat) -> tuple[int, ...]:
    return tuple(MODEL.tokenizer.apply_chat_template(chat, return_dict=False))


# --- rendering ---------------------------------------------------------------------------------------


@given(chats, replies)
def test_prompt_and_reply_are_the_beginning_of_the_full_rendering(chat: Chat, reply: str) -> None:
    prompt, full = MODEL.prompt_tokens(chat), rendered([*chat, assistant(reply)])
    assert full[: len(prompt)] == prompt
    joined = prompt + MODEL.reply_tokens(reply)
    assert full[: len(joined)] == joined
    assert MODEL.tokenizer.decode(full[len(joined) :]) == "\n"


@given(chats, replies)
def test_a_chat_opens_once(chat: Chat, reply: str) -> None:
    opening = MODEL.tokenizer.bos_token_id
    assert MODEL.tokenizer("hello")["input_ids"][0] == opening, "the trap is set"
    tokens = MODEL.prompt_tokens(chat) + MODEL.reply_tokens(reply)
    assert tokens[0] == opening
    assert tokens.count(opening) == 1


@given(replies)
def test_a_reply_ends_with_the_end_token_if_and_only_if_it_is_finished(reply: str) -> None:
    finished, cut = MODEL.reply_tokens(reply), MODEL.reply_tokens(reply, finished=False)
    assert finished == (*cut, MODEL.end_token)
    assert MODEL.end_token not in cut
    assert MODEL.tokenizer.decode(cut) == reply


def test_the_end_token_is_the_templates_own(tiny_model: LocalModel) -> None:
    tiny_model.tokenizer.eos_token = OPENING  # as where a base model's end of text is not the end of a turn
    assert tiny_model.end_token == tiny_model.tokenizer.convert_tokens_to_ids(END)
    assert tiny_model.stop_tokens == {tiny_model.end_token, tiny_model.tokenizer.eos_token_id}


def test_a_reply_that_nothing_ends_is_told(tiny_model: LocalModel) -> None:
    tiny_model.tokenizer.eos_token = None
    tiny_model.tokenizer.chat_template = "{% for message in messages %}{{ message['content'] + '\n' }}{% endfor %}"
    with pytest.raises(SpiritLevelError, match=r"tiny: .*no end token(.|\n)*`eos_token` in tokenizer_config\.json"):
        tiny_model.reply_tokens("hello")


def test_stop_tokens_include_all_that_the_generation_config_names(tiny_model: LocalModel) -> None:
    tiny_model.model.generation_config.eos_token_id = [3, 4]
    assert tiny_model.stop_tokens == {3, 4, tiny_model.end_token}


def test_a_fork_is_prompt_and_finished_replies() -> None:
    chat = CHATS[2]
    replies = ("hello", "on the one")
    assert MODEL.fork(chat, replies) == Fork(
        MODEL.prompt_tokens(chat), tuple(MODEL.reply_tokens(reply) for reply in replies)
    )


def test_a_template_that_refuses_a_chat_is_told_with_its_own_words(tiny_model: LocalModel) -> None:
    tiny_model.tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        + tiny_model.tokenizer.chat_template
    )
    assert tiny_model.prompt_tokens([user("hello")]) == MODEL.prompt_tokens([user("hello")])
    for ask in (
        tiny_model.prompt_tokens,
        lambda chat: tiny_model.generate([chat], max_new_tokens=1),
        lambda chat: list(tiny_model.stream(chat, max_new_tokens=1)),
    ):
        with pytest.raises(SpiritLevelError, match="conversation of system, user: System role not supported") as told:
            ask([system("be the one"), user("hello")])
        assert told.value.where == "tiny"
        assert "chat_template.jinja" in told.value.remedy


def test_a_broken_template_is_told(tiny_model: LocalModel) -> None:
    tiny_model.tokenizer.chat_template = "{% if %}"
    for ask in (lambda: tiny_model.prompt_tokens([user("hello")]), lambda: tiny_model.end_token):
        with pytest.raises(SpiritLevelError, match="tiny: its chat template does not render"):
            ask()


# --- generating --------------------------------------------------------------------------------------

WAYS = [{}, {"temperature": 1.0}, {"temperature": 1.3, "top_p": 0.7}]


@pytest.mark.parametrize("way", WAYS)
def test_each_chat_gets_what_it_gets_alone(way: dict[str, float]) -> None:
    seeds = [1, 2, 3, 4]
    finished: dict[int, Any] = {}
    together = MODEL.generate(CHATS, max_new_tokens=12, seeds=seeds, on_finish=finished.__setitem__, **way)
    alone = [
        MODEL.generate([chat], max_new_tokens=12, seeds=[seed], **way)[0]
        for chat, seed in zip(CHATS, seeds, strict=True)
    ]
    assert together == alone == [finished[index] for index in range(len(CHATS))]
    assert (together[0] == together[3]) == (not way), "the same chat with another seed"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("seed", range(6))
def test_the_pieces_of_a_stream_are_the_generated_text(way: dict[str, float], seed: int) -> None:
    [reply] = MODEL.generate([CHATS[0]], max_new_tokens=24, seeds=[seed], **way)
    assert "".join(MODEL.stream(CHATS[0], max_new_tokens=24, seed=seed, **way)).strip() == reply.text


def _speak(tokens: Sequence[int]) -> Callable[..., None]:
    """Stands in for `decode` and says these tokens."""

    def decode(*_: Any, on_token: Callable[[int, int], None], **__: Any) -> None:
        for token in tokens:
            on_token(0, token)

    return decode


@given(text=texts, cut=st.integers(0, 2))
def test_a_stream_never_shows_half_a_character_and_loses_nothing(text: str, cut: int) -> None:
    tokens = MODEL.tokenizer(text, add_special_tokens=False)["input_ids"]
    tokens = tokens[: len(tokens) - cut]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "decode", _speak(tokens))
        pieces = list(MODEL.stream(CHATS[0], max_new_tokens=1))
    assert "".join(pieces) == MODEL.tokenizer.decode(tokens)
    if not cut and "\ufffd" not in text:
        assert "\ufffd" not in "".join(pieces)


def test_what_fails_while_streaming_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(*_: Any, on_token: Callable[[int, int], None], **__: Any) -> None:
        on_token(0, 1)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(local, "decode", decode)
    with pytest.raises(RuntimeError, match="out of memory"):
        list(MODEL.stream(CHATS[0], max_new_tokens=4))


def test_what_a_model_has_no_positions_for_is_not_drawn() -> None:
    model = build_gpt2(context=64)
    assert model.context == 64
    chats: list[Chat] = [[user("a")], [user("hello " * 5)]]
    prompts = [model.prompt_tokens(chat) for chat in chats]
    room = 64 - max(map(len, prompts))
    assert len(model.generate(chats, max_new_tokens=room)) == 2
    for draw in (
        lambda: model.generate(chats, max_new_tokens=room + 1),
        lambda: list(model.stream(chats[1], max_new_tokens=room + 1)),
        lambda: InProcess(model).generate(prompts, Sampling(room + 1, 1.0), seeds=[[0], [1]]),
    ):
        with pytest.raises(SpiritLevelError, match=r"exceed the model's context of 64 tokens \(the longest has 65\)"):
            draw()


# --- remembering -------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_what_was_answered_is_not_generated_again(
    way: dict[str, float], tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, store = open_local(str(tiny_folder), dtype="float64"), ContentStore(tmp_path / "store")
    chats: list[Chat] = [[user(f"hello {number}" * (1 + number % 3))] for number in range(50)]
    seeds, told = list(range(50)), []

    def ask() -> list[Any]:
        told.clear()
        return answer_all(model, chats, store=store, max_new_tokens=5, seeds=seeds, on_progress=told.append, **way)

    generated: list[int] = []
    generate = model.generate

    def counting(chats: Sequence[Chat], **settings: Any) -> list[Any]:
        generated.append(len(chats))
        return generate(chats, **settings)

    monkeypatch.setattr(model, "generate", counting)
    first = ask()
    assert first == generate(chats, max_new_tokens=5, seeds=seeds, **way)
    assert sum(generated) == sum(told) == 50
    generated.clear()
    assert ask() == first
    assert generated == []
    assert sum(told) == 50

    kept = sorted(store.root.rglob("*.json"))
    for path in random.Random(0).sample(kept, 9):
        path.unlink()
    kept[0].write_text('{"key": "torn')
    assert ask() == first
    assert 0 < sum(generated) <= 50
    assert len(list(store.root.rglob("*.json"))) == 50


def test_other_settings_and_another_model_are_asked_anew(tmp_path: Path) -> None:
    store = ContentStore(tmp_path / "store")
    one, other = (
        open_local(str(save_model(tmp_path / f"model-{seed}", seed=seed)), dtype="float64") for seed in (0, 1)
    )
    base = {"max_new_tokens": 4, "temperature": 1.0, "seeds": [1]}
    for model, changes in [
        (one, {}),
        (one, {"max_new_tokens": 5}),
        (one, {"temperature": 0.9}),
        (one, {"top_p": 0.9}),
        (one, {"seeds": [2]}),
        (other, {}),
    ]:
        before = len(list(store.root.rglob("*.json")))
        settings: dict[str, Any] = base | changes
        answers = answer_all(model, [CHATS[0]], store=store, **settings)
        assert answers == model.generate([CHATS[0]], **settings)
        assert len(list(store.root.rglob("*.json"))) == before + 1


# --- identity and loading ----------------------------------------------------------------------------


def test_a_digest_is_that_of_the_files(tiny_folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere"
    shutil.copytree(tiny_folder, copy)
    (copy / "README.md").write_text("no matter")

    def digest(folder: Path, dtype: str = "float64") -> str:
        return open_local(str(folder), dtype=dtype).digest

    first = digest(tiny_folder)
    assert first == digest(tiny_folder) == digest(copy)
    assert first != digest(tiny_folder, "float32")
    assert first != digest(save_model(tmp_path / "other", seed=1))
    template = copy / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    assert first != digest(copy)


def test_one_changed_weight_changes_the_digest(tiny_folder: Path) -> None:
    model = open_local(str(tiny_folder), dtype="float64")
    before = model.digest
    model.model.get_input_embeddings().weight.data[0, 0] += 1e-3
    model.model.save_pretrained(tiny_folder)
    assert open_local(str(tiny_folder), dtype="float64").digest != before


def as_bin(folder: Path) -> Path:
    """The same with its weights as torch.save writes them."""
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


def test_models_that_differ_in_bin_weights_alone_differ_in_digest(tmp_path: Path) -> None:
    one, other = (open_local(str(as_bin(save_model(tmp_path / str(seed), seed=seed)))) for seed in (0, 1))
    assert one.generate(CHATS, max_new_tokens=4) != other.generate(CHATS, max_new_tokens=4)
    assert one.digest != other.digest


def test_bin_files_beside_safetensors_are_not_loaded_and_not_in_the_digest(tiny_folder: Path, tmp_path: Path) -> None:
    before = open_local(str(tiny_folder)).digest
    shutil.copy(as_bin(save_model(tmp_path / "other", seed=1)) / "pytorch_model.bin", tiny_folder)
    assert open_local(str(tiny_folder)).digest == before


def test_the_digest_of_an_adapter_is_also_that_of_its_base(tiny_folder: Path, tmp_path: Path) -> None:
    student = add_lora(open_local(str(tiny_folder), dtype="float32"), LoraSettings(2, 4), seed=0)
    with pytest.raises(ValueError, match="no digest"):
        _ = student.digest  # it is no longer what the files of its base say
    save_trained(student, tmp_path / "adapter", form="adapter")
    before = open_local(str(tmp_path / "adapter"), dtype="float32").digest
    assert before == open_local(str(tmp_path / "adapter"), dtype="float32").digest
    model = open_local(str(tiny_folder), dtype="float64")
    model.model.get_input_embeddings().weight.data[0, 0] += 1e-3
    model.model.save_pretrained(tiny_folder)
    assert open_local(str(tmp_path / "adapter"), dtype="float32").digest != before


def test_a_model_made_in_memory_has_no_digest(tiny_model: LocalModel) -> None:
    with pytest.raises(ValueError, match="no digest"):
        _ = tiny_model.digest


def test_a_saved_model_answers_as_it_did(tiny_folder: Path, tiny_model: LocalModel) -> None:
    loaded = open_local(str(tiny_folder), dtype="float64")
    assert loaded.generate(CHATS, max_new_tokens=8) == tiny_model.generate(CHATS, max_new_tokens=8)
    assert loaded.tokenizer.convert_tokens_to_ids([OPENING, START, END]) == [269, 270, 271]


def test_a_folder_that_is_no_chat_model_is_refused_with_its_name(tiny_folder: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(SpiritLevelError, match=r"empty: holds neither config\.json nor adapter_config\.json"):
        open_local(str(empty))
    with pytest.raises(SpiritLevelError, match="there is no such model"):
        open_local(str(tmp_path / "missing"))
    (tiny_folder / "chat_template.jinja").unlink()
    with pytest.raises(SpiritLevelError, match="no chat template"):
        open_local(str(tiny_folder))
    (tiny_folder / "config.json").write_text(json.dumps({"model_type": "unheard-of"}))
    with pytest.raises(SpiritLevelError, match="can't be loaded"):
        open_local(str(tiny_folder))


@pytest.mark.parametrize("size", [0, 4, 2000])
@pytest.mark.parametrize("which", ["model", "base", "adapter"])
def test_weights_that_were_cut_short_are_told_by_file(which: str, size: int, tiny_folder: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    save_trained(add_lora(open_local(str(tiny_folder)), LoraSettings(2, 4), seed=0), adapter, form="adapter")
    opened = tiny_folder if which == "model" else adapter
    broken = adapter / "adapter_model.safetensors" if which == "adapter" else tiny_folder / "model.safetensors"
    broken.write_bytes(broken.read_bytes()[:size])
    with pytest.raises(SpiritLevelError, match="the weights can't be read: ") as told:
        open_local(str(opened))
    assert told.value.where == str(broken)
    assert "cut short" in told.value.remedy


@pytest.mark.parametrize("size", [0, 2000])
def test_bin_weights_that_were_cut_short_are_told(size: int, tiny_folder: Path) -> None:
    broken = as_bin(tiny_folder) / "pytorch_model.bin"
    broken.write_bytes(broken.read_bytes()[:size])
    with pytest.raises(SpiritLevelError, match="tiny: the model can't be loaded: "):
        open_local(str(tiny_folder))


def test_weights_of_another_shape_are_told(tiny_folder: Path) -> None:
    config = json.loads((tiny_folder / "config.json").read_text())
    (tiny_folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 40}))
    with pytest.raises(SpiritLevelError, match="tiny: the model can't be loaded: "):
        open_local(str(tiny_folder))


@pytest.mark.parametrize("which", ["model", "base"])
def test_weights_that_lack_one_are_told_by_its_name(which: str, tiny_folder: Path, tmp_path: Path) -> None:
    adapter, file = tmp_path / "adapter", tiny_folder / "model.safetensors"
    save_trained(add_lora(open_local(str(tiny_folder)), LoraSettings(2, 4), seed=0), adapter, form="adapter")
    weights = load_file(file)
    for name in ("model.layers.1.mlp.up_proj.weight", "model.norm.weight"):
        del weights[name]
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(SpiritLevelError, match=r"lack model\.layers\.1\.mlp\.up_proj\.weight and 1 more") as told:
        open_local(str(tiny_folder if which == "model" else adapter))
    assert told.value.where == str(tiny_folder)


def test_a_head_that_is_the_embedding_need_not_be_in_the_file(tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    model = build_llama(vocab_size=len(tokenizer), tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    opened = open_local(str(tmp_path), dtype="float64").model
    assert torch.equal(opened.lm_head.weight, model.model.embed_tokens.weight)
