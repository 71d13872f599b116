"""What the documents say exists: links, files, commands and their options, settings."""

import importlib
import re
import subprocess
import sys

import pytest

from grpo_gym.cli import COMMANDS, make_parser, parse
from grpo_gym.config import ConfigError, load_experiment
from tests.docs.markdown import DOCUMENTS, ROOT, commands, links, name_of

COMMAND_LINES = [
    pytest.param(words, id=f"{name_of(document)}: {' '.join(words)}"[:100])
    for document in DOCUMENTS
    for words in commands(document, "grpo-gym")
]


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_links_lead_somewhere(document):
    missing = [target for target in links(document) if not (document.parent / target).exists()]
    assert not missing


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_files_that_are_named_exist(document):
    named = set(
        re.findall(
            r"(?<![\w/])((?:configs|tools|tests|docs)/[\w./-]+\.(?:yaml|py|sh|md))", document.read_text()
        )
    )
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing


@pytest.mark.parametrize("words", COMMAND_LINES)
def test_commands_are_understood(words):
    parse(words)


@pytest.mark.parametrize("words", [p for p in COMMAND_LINES if p.values[0][:1] == ["train"]])
def test_experiments_and_overrides_are_accepted(words, monkeypatch):
    monkeypatch.chdir(ROOT)
    from grpo_gym.cli.train import experiment_file

    path, overrides = experiment_file(parse(words))
    if (ROOT / path).exists():
        load_experiment(path, overrides)


def test_every_command_is_described_with_an_example():
    text = (ROOT / "docs/command_line.md").read_text()
    assert set(re.findall(r"^## `grpo-gym (\w+)`", text, re.MULTILINE)) == set(COMMANDS)
    examples = {words[0] for words in commands(ROOT / "docs/command_line.md", "grpo-gym")}
    assert examples >= set(COMMANDS)


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_explains_itself(command):
    importlib.import_module(f"grpo_gym.cli.{command}")
    text = make_parser([command])._subparsers._group_actions[0].choices[command].format_help()
    assert f"grpo-gym {command}" in text.split("example", 1)[1]


def test_the_configuration_reference_is_up_to_date():
    command = [sys.executable, "tools/config_reference.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


def inline_settings(name):
    """The `key=value` settings that a document names in the text."""
    spans = re.findall(r"`([^`\n]+)`", (ROOT / "docs" / name).read_text())
    words = [word for span in spans for word in span.split()]
    return sorted(
        {w.replace("NAME", "leg_counting") for w in words if re.fullmatch(r"[a-z][\w.]*(NAME)?[\w.]*=\S+", w)}
    )


@pytest.mark.parametrize("setting", [*inline_settings("recipes.md"), *inline_settings("troubleshooting.md")])
def test_settings_in_the_text_exist(setting):
    load_experiment(ROOT / "configs/experiments/tiny_leg_counting.yaml", [setting])


def names_refused(document):
    """The settings of TRL that the document says do not exist here."""
    table = re.search(
        r"refused as unknown.*?\n\n(.*?)\n\n", (ROOT / "docs" / document).read_text(), re.DOTALL
    )
    cells = [line.split("|")[1] for line in table[1].splitlines()[2:]]
    return [name for cell in cells for name in re.findall(r"`([a-z0-9_]+[a-z0-9])[`:]", cell)]


@pytest.mark.parametrize("name", names_refused("migration.md"))
def test_names_of_trl_that_are_called_refused_are(name):
    with pytest.raises(ConfigError, match=f"{name}: unknown setting"):
        load_experiment(ROOT / "configs/experiments/tiny_leg_counting.yaml", [f"{name}=1"])
