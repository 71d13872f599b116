"""What the documents say exists: links, files, commands and their options, settings."""

import importlib
import re
import subprocess
import sys

import pytest
import yaml

from grpo_gym.cli import COMMANDS, make_parser, parse
from grpo_gym.config import ConfigError, load_experiment
from grpo_gym.config.build import build_args, build_environment
from grpo_gym.evaluation.config import load_evaluation
from grpo_gym.rewards import create_reward, registry
from grpo_gym.rewards.registry import reward_names
from grpo_gym.rollouts.scoring import leaf_rubrics
from tests.docs.markdown import DOCUMENTS, ROOT, blocks, commands, links, name_of

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


def made_by_the_lines(document):
    """What the `train` lines of a document leave: the resolved experiment of each output_dir."""
    lines = [words for words in commands(document, "grpo-gym") if words[0] == "train"]
    folders = [word.split("=", 1)[1] for words in lines for word in words if word.startswith("output_dir=")]
    return {f"{folder}/config.yaml" for folder in folders}


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_experiments_and_overrides_are_accepted(document, monkeypatch):
    monkeypatch.chdir(ROOT)
    from grpo_gym.cli.train import experiment_file

    for words in [words for words in commands(document, "grpo-gym") if words[0] == "train"]:
        path, overrides = experiment_file(parse(words))
        if str(path) not in made_by_the_lines(document):
            load_experiment(path, overrides)


@pytest.fixture
def beside_the_configs(tmp_path):
    """Folders in which `_base_: configs/base.yaml`, `../base.yaml` and `reasoning_gym.yaml` are files."""
    folder = tmp_path / "experiments"
    folder.mkdir()
    for path in (*(ROOT / "configs").iterdir(), *(ROOT / "configs/eval").iterdir(), ROOT / "configs"):
        for place in (folder, tmp_path):
            if not (place / path.name).exists():
                (place / path.name).symlink_to(path)
    return folder


@pytest.mark.parametrize(("document", "number", "block"), [
    pytest.param(document, number, block, id=f"{name_of(document)}-{number}")
    for document in DOCUMENTS
    for number, block in enumerate(blocks(document, "yaml"))
])  # fmt: skip
def test_files_that_are_shown_load(document, number, block, beside_the_configs):
    """Experiments with their settings, and evaluations; `<!-- fragment -->` above a block exempts it."""
    path = beside_the_configs / f"shown_{number}.yaml"
    path.write_text(block)
    if "categories" in yaml.safe_load(block):
        load_evaluation(path)
    else:
        build_args(load_experiment(path))


def test_the_reward_that_is_shown_counts(beside_the_configs, monkeypatch):
    """docs/configuration.md: the module, and the experiment that names it."""
    document = ROOT / "docs/configuration.md"
    module = next(block for block in blocks(document, "python") if "# my_rewards.py" in block)
    (beside_the_configs / "my_rewards.py").write_text(module)
    rewards = next(block for block in blocks(document, "yaml") if "my_rewards.py" in block)
    path = beside_the_configs / "x.yaml"
    path.write_text(f"data: {{tasks: {{leg_counting: {{}}}}}}\n{rewards}")
    assert "brevity" not in reward_names()  # which also loads those that are built in
    monkeypatch.setattr(registry, "_REWARDS", dict(registry._REWARDS))
    monkeypatch.setattr(registry, "_loaded_modules", [])
    env = build_environment(load_experiment(path))
    names = [func.__name__ for rubric in leaf_rubrics(env.rubric) for func in rubric.funcs]
    assert {"correctness", "strict_format", "brevity"} <= set(names)
    brevity = create_reward("brevity", deadline=2.0)
    assert [brevity.compute("", "x" * length, "", {}) for length in (0, 100, 300)] == [1.0, 0.5, 0.0]


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
