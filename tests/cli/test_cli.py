"""A user's mistake is one message on stderr, with its place and a remedy, and an exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.text import Text

from command_line import Run
from spiritlevel import __version__
from spiritlevel.charter import load_charter, system_prompt
from spiritlevel.cli import main as cli

TEMPLATES = Path(str(files("spiritlevel.charter"))) / "templates"
ACCOUNTING = str(TEMPLATES / "accounting")


@pytest.fixture
def accounting(spiritlevel: Run, tmp_path: Path) -> Path:
    """A charter that was started from a template, to be damaged."""
    assert spiritlevel("charter", "new", tmp_path / "mine").code == 0
    return tmp_path / "mine" / "charter.yaml"


def damage(path: Path, old: str, new: str) -> int:
    """Replaces `old` once; the number of its line."""
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    return text[: text.index(old)].count("\n") + 1


def verbs(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    for name, child in getattr(command, "commands", {}).items():
        yield from verbs(child, (*path, name))


VERBS = list(verbs(typer.main.get_command(cli.app)))


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: " ".join(verb) or "spiritlevel")
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_every_verb_has_help(spiritlevel: Run, verb: tuple[str, ...], flag: str) -> None:
    outcome = spiritlevel(*verb, flag)
    assert (outcome.code, outcome.err) == (0, "")
    assert "Usage" in outcome.out


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: " ".join(verb) or "spiritlevel")
def test_no_help_is_eaten_as_markup(verb: tuple[str, ...]) -> None:
    command: Any = typer.main.get_command(cli.app)
    for name in verb:
        command = command.commands[name]
    for text in filter(None, [command.help, *(getattr(option, "help", "") for option in command.params)]):
        assert Text.from_markup(text).plain == text


def test_these_are_the_verbs(spiritlevel: Run) -> None:
    assert {verb[0] for verb in VERBS if verb} == {
        "charter",
        "align",
        "eval",
        "data",
        "train",
        "chat",
        "doctor",
        "model",
    }
    assert spiritlevel("--version") == (0, f"{__version__}\n", "")


BAD: list[tuple[list[str], str, str]] = [
    (["charter", "lint", "nowhere"], "nowhere: there is no such charter", "charter new"),
    (["charter", "show", "nowhere"], "nowhere: there is no such charter", "charter new"),
    (["charter", "show", ACCOUNTING, "--judge", "no-rule"], "there is no rule 'no-rule'", "no-legal-advice"),
    (["charter", "diff", ACCOUNTING, "nowhere"], "nowhere: there is no such charter", "charter new"),
    (
        ["charter", "new", "x", "--template", "[/bold]"],
        "there is no template '[/bold]'",
        "Choose one of: accounting",
    ),
    (["charter", "new", f"{ACCOUNTING}/charter.yaml"], "exists and is not empty", "Choose a new folder"),
    (
        ["charter", "new", f"{ACCOUNTING}/charter.yaml/x"],
        "charter.yaml/x: Not a directory",
        "run the same command",
    ),
    (["align", "nowhere"], "nowhere: there is no such charter", "charter new"),
    (["eval", "nowhere"], "nowhere: there is no such charter", "charter new"),
    (["chat", "--charter", "nowhere"], "nowhere: there is no such charter", "charter new"),
    (["data", "contrast", "nowhere"], "nowhere: there is no such charter", "charter new"),
    (["data", "check", "nowhere"], "nowhere: there is no such file", ""),
    (["data", "check", ACCOUNTING], "accounting: Is a directory", "Name a file"),
    (
        ["train", "dpo", "--data", "nowhere", "--out", "x", "--schedule", "soon"],
        "Invalid value for '--schedule'",
        "linear",
    ),
    (
        ["train", "dpo", "--data", "nowhere", "--out", "x", "--rank", "0", "--adapter"],
        "there is no adapter to write",
        "Leave `--adapter` out",
    ),
    (["charter", "lnit"], "No such command 'lnit'", "Did you mean 'lint'"),
    (["charter", "lint"], "Missing argument", "charter lint -h"),
    (["charter", "new"], "Missing argument 'folder'", "charter new -h"),
    (["align", ACCOUNTING, "--seed", "x"], "'--seed': Input should be a valid integer", "align -h"),
]


@pytest.mark.parametrize(("arguments", "problem", "remedy"), BAD, ids=[" ".join(row[0])[:40] for row in BAD])
def test_bad_input_is_told_on_stderr_with_its_remedy(
    spiritlevel: Run,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    arguments: list[str],
    problem: str,
    remedy: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = spiritlevel(*arguments)
    assert (outcome.code, outcome.out) == (3, "")
    assert problem in outcome.err
    assert remedy in outcome.err
    assert "Traceback" not in outcome.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("verb", [["charter", "lint"], ["charter", "show"], ["align"], ["eval"], ["data", "contrast"]])
def test_a_faulty_charter_is_told_by_line_and_field(spiritlevel: Run, accounting: Path, verb: list[str]) -> None:
    first = damage(accounting, "severity: high", "severity: dire")
    second = damage(accounting, "  voice: Calm", "  vioce: Calm")
    outcome = spiritlevel(*verb, accounting)
    assert (outcome.code, outcome.out) == (3, "")
    assert f"{accounting}:{first}: rules[0].severity: " in outcome.err
    assert f"{accounting}:{second}: tone.vioce: unknown field (did you mean `voice`?)" in outcome.err
    assert "→" in outcome.err
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize("verb", ["align", "eval", "data contrast"])
@pytest.mark.parametrize("break_it", ["missing", "unsound"])
def test_a_bad_charter_is_refused_before_torch_is_loaded(accounting: Path, verb: str, break_it: str) -> None:
    if break_it == "missing":
        accounting.unlink()
        place = ""
    else:
        line = damage(accounting, "    say:\n", "    say:\n      - You have a strong case.\n")
        place = f":{line + 1}"
    code = "import sys; from spiritlevel.cli.main import main\ntry: main()\nfinally: print('torch' in sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code, *verb.split(), accounting],
        capture_output=True,
        text=True,
        cwd=accounting.parent,
    )
    assert (run.returncode, run.stdout) == (3, "False\n")
    assert f"{accounting}{place}: " in run.stderr and "→" in run.stderr
    assert "Traceback" not in run.stderr
    assert not (accounting.parent / "runs").exists()


def test_new_starts_a_sound_charter_and_overwrites_nothing(spiritlevel: Run, tmp_path: Path) -> None:
    names = spiritlevel("charter", "new", "--list").out.split()
    assert names == sorted(folder.name for folder in TEMPLATES.iterdir())
    for name in names:
        folder = tmp_path / f"[{name}]"
        assert spiritlevel("charter", "new", folder, "--template", name).code == 0
        assert load_charter(folder).digest == load_charter(TEMPLATES / name).digest
        assert json.loads((folder / "charter.schema.json").read_text())
        assert spiritlevel("charter", "lint", folder).code == 0
        kept = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        refused = spiritlevel("charter", "new", folder, "--template", names[0])
        assert refused.code == 3 and str(folder) in refused.err and "nothing is overwritten" in refused.err
        assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == kept


def test_lint_counts_and_lists_faults(spiritlevel: Run, accounting: Path) -> None:
    assert json.loads(spiritlevel("charter", "lint", accounting, "--json").out) == []
    assert "0 errors, 0 warnings in 2 charter(s)" in spiritlevel("charter", "lint", accounting, ACCOUNTING).out
    damage(accounting, "- probes/train.jsonl", "- probes/train.jsonl\n    - probes/held_out.jsonl")
    told, listed = (
        spiritlevel("charter", "lint", accounting),
        spiritlevel("charter", "lint", accounting, "--json"),
    )
    faults = json.loads(listed.out)
    assert told.code == listed.code == 1
    assert {fault["level"] for fault in faults} == {"error"} and len(faults) == 80
    assert all(f"{fault['where']}: error: {fault['message']}" in told.out for fault in faults)
    assert "80 errors, 0 warnings in 1 charter(s)" in told.out


def test_show_prints_the_charter_as_it_is(spiritlevel: Run, accounting: Path) -> None:
    damage(accounting, "owner: client-services@quillstone.example", "owner: '[/red] the desk'")
    damage(accounting, "role: >-", "role: >-\n  [bold]Note[/]")
    charter = load_charter(accounting)
    table = spiritlevel("charter", "show", accounting)
    assert table.code == 0 and charter.digest[:12] in table.out and "[/red] the desk" in table.out
    assert spiritlevel("charter", "show", accounting, "--prompt").out == f"{system_prompt(charter)}\n"
    for rule in charter.rules:
        assert rule.text in spiritlevel("charter", "show", accounting, "--judge", rule.id).out
    shown = json.loads(spiritlevel("charter", "show", accounting, "--json").out)
    assert shown.pop("digest") == charter.digest
    assert shown == charter.model_dump(mode="json", by_alias=True)


def test_a_charter_does_not_steer_the_terminal(spiritlevel: Run, accounting: Path) -> None:
    damage(accounting, "role: >-", 'role: "\\u001b]0;owned\\u0007\\u001b[2J You are the desk."\nunused: >-')
    text = accounting.read_text()
    start = text.index("unused: >-")
    accounting.write_text(text[:start] + text[text.index("tone:") :])
    damage(accounting, "owner: client-services@", 'owner: "\\u001b[2J\\u202eclient-services@')
    damage(accounting, "quillstone.example\nrole", 'quillstone.example"\nrole')
    for flags in (["--prompt"], []):
        shown = spiritlevel("charter", "show", accounting, *flags).out
        assert ("You are the desk." if flags else "client-services@") in shown
        assert not set("\x1b\x07\u202e") & set(shown)


def test_diff_tells_what_is_stale(spiritlevel: Run, accounting: Path) -> None:
    assert spiritlevel("charter", "diff", ACCOUNTING, accounting)[:2] == (
        0,
        "the two charters mean the same\n",
    )
    assert spiritlevel("charter", "diff", ACCOUNTING, accounting, "--json")[:2] == (0, "[]\n")
    damage(accounting, "Do not advise on legal matters", "Never advise on legal matters")
    told, listed = (spiritlevel("charter", "diff", ACCOUNTING, accounting, *flag) for flag in ([], ["--json"]))
    assert told.code == listed.code == 1
    assert "no-legal-advice" in told.out
    (change,) = json.loads(listed.out)
    assert (change["part"], change["fields"]) == ("no-legal-advice", ["text"])
    assert "training pairs" in change["stale"]


def test_diff_counts_the_probes(spiritlevel: Run, accounting: Path) -> None:
    with (accounting.parent / "probes" / "train.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"prompt": "Is tea an expense?", "expect": "help"}\n')
    told, listed = (spiritlevel("charter", "diff", ACCOUNTING, accounting, *flag) for flag in ([], ["--json"]))
    assert told.code == listed.code == 1
    assert "probes.train" in told.out and "1 added" in told.out
    stale = ["trained model", "training pairs"]
    assert json.loads(listed.out) == [
        {"kind": "changed", "part": "probes.train", "fields": ["1 added"], "stale": stale}
    ]


def test_diff_of_a_version_out_of_its_folder_says_what_it_could_not_compare(
    spiritlevel: Run, accounting: Path, tmp_path: Path
) -> None:
    alone = tmp_path / "old.yaml"
    alone.write_text(accounting.read_text(encoding="utf-8"), encoding="utf-8")
    told = spiritlevel("charter", "diff", alone, accounting)
    assert told.code == 1 and told.out == "the two charters mean the same, but for their probes\n"
    assert "the probes are not compared" in told.err and "train.jsonl" in told.err


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("bata: 0.1\n", "bata is no option of `spiritlevel train ipo`"),
        ("nll-weight: 0.1\nconfig: x\n", "config is no option"),
        ("beta: [\n", "can't be read as YAML"),
        ("- beta\n", "holds no settings"),
        ("beta: much\n", "'--beta'"),
    ],
)
def test_a_config_that_is_wrong_is_told_by_file(spiritlevel: Run, tmp_path: Path, text: str, problem: str) -> None:
    config = tmp_path / "ipo.yaml"
    config.write_text(text, encoding="utf-8")
    told = spiritlevel("train", "ipo", "--config", config, "--data", "nowhere.jsonl", "--out", tmp_path / "out")
    assert told.code == 3 and problem in told.err and "Traceback" not in told.err


def test_a_config_gives_what_flags_leave_open(spiritlevel: Run, tmp_path: Path) -> None:
    config = tmp_path / "ipo.yaml"
    config.write_text(f"data: nowhere.jsonl\nout: {tmp_path / 'out'}\nbatch-size: 4\n", encoding="utf-8")
    told = spiritlevel("train", "ipo", "--config", config)
    assert told.code == 3 and "nowhere.jsonl: there is no such file" in told.err
    told = spiritlevel("train", "ipo", "--config", config, "--data", "elsewhere.jsonl")
    assert told.code == 3 and "elsewhere.jsonl: there is no such file" in told.err


def test_schema_is_json(spiritlevel: Run) -> None:
    schema = json.loads(spiritlevel("charter", "schema").out)
    assert {"rules", "scope", "probes"} <= set(schema["properties"])


PAIR = {"prompt": "q", "chosen": "good", "rejected": "bad"}


def test_what_a_file_of_records_says_is_text(spiritlevel: Run, tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text(json.dumps(PAIR | {"rule": "[/x]"}) + "\n")
    outcome = spiritlevel("data", "check", file)
    assert (outcome.code, outcome.err) == (0, "") and "rules: [/x] 1;" in outcome.out


def test_converted_there_and_back_a_file_has_all_its_columns(spiritlevel: Run, tmp_path: Path) -> None:
    rows = [
        PAIR | {"id": "a", "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "good"}]},
        PAIR | {"score": 0.5, "source": "person", "provenance": {}},
    ]
    source, parquet, back = (tmp_path / name for name in ("a.jsonl", "b.parquet", "c.jsonl"))
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert spiritlevel("data", "convert", source, parquet).code == 0
    assert spiritlevel("data", "convert", parquet, back).code == 0
    again = [json.loads(line) for line in back.read_text().splitlines()]
    assert [{name: value for name, value in row.items() if value is not None} for row in again] == rows
    assert spiritlevel("data", "check", parquet).out.startswith("2 records")
