from pathlib import Path

import pytest

from grpo_gym.config.errors import ConfigError
from grpo_gym.evaluation.config import load_evaluation

ROOT = Path(__file__).parents[2]


def load(folder, text, *overrides):
    path = folder / "x.yaml"
    path.write_text(text)
    return load_evaluation(path, overrides)


@pytest.mark.parametrize("path", sorted((ROOT / "configs/eval").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_evaluations_load(path):
    assert load_evaluation(path).categories


def test_the_broad_evaluation_has_the_tasks_of_every_category_mix():
    import yaml

    config = load_evaluation(ROOT / "configs/eval/reasoning_gym.yaml")
    for category, members in config.categories.items():
        mix = yaml.safe_load((ROOT / f"configs/tasks/{category}.yaml").read_text())
        assert list(members) == list(mix["data"]["tasks"])


def test_reasoning_gyms_own_way_of_writing_loads(tmp_path):
    config = load(
        tmp_path,
        "model: tiny\ndefault_size: 50\ndefault_seed: 45\ncategories:\n"
        "  - category: algebra\n    datasets:\n      - dataset: complex_arithmetic\n"
        "      - dataset: simple_equations\n        size: 7\n        params: {min_terms: 2}\n",
    )
    assert list(config.categories["algebra"]) == ["complex_arithmetic", "simple_equations"]
    assert config.categories["algebra"]["simple_equations"].size == 7


def test_names_alone_and_two_settings_of_one_task(tmp_path):
    config = load(
        tmp_path,
        "categories:\n  arithmetic: [chain_sum, gcd]\n"
        "  hard:\n    chain_sum_hard: {dataset: chain_sum, params: {min_digits: 4, max_digits: 6}}\n",
    )
    assert list(config.categories["arithmetic"]) == ["chain_sum", "gcd"]


def test_base_files_and_overrides(tmp_path):
    (tmp_path / "base.yaml").write_text("model: tiny\nrepeats: 2\ncategories: {logic: {aiw: {size: 3}}}\n")
    config = load(
        tmp_path, "_base_: base.yaml\nrepeats: 4\n", "temperature=0.5", "categories.logic.aiw.size=9"
    )
    assert (config.repeats, config.temperature) == (4, 0.5)
    assert config.categories["logic"]["aiw"].size == 9
    assert config.output_dir == "outputs/eval/x/tiny"


LOGIC = "categories: {logic: {aiw: {}}}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "categories:\n  logic:\n    leg_countin: {}\n",
            r"x.yaml:3: .*leg_countin.* did you mean 'leg_counting'",
        ),
        (
            "categories:\n  logic:\n    aiw: {params: {max_entitie: 3}}\n",
            r"x.yaml:3: .*no setting 'max_entitie'; did you mean 'max_entities'",
        ),
        ("repeat: 3\n" + LOGIC, r"x.yaml:1: repeat: unknown setting; did you mean 'repeats'"),
        ("repeats: none\n" + LOGIC, r"x.yaml:1: repeats: .*integer"),
        (
            "categories: {logic: {aiw: {sise: 3}}}\n",
            r"x.yaml:1: .*sise: unknown setting; did you mean 'size'",
        ),
        ("repeats: 2\ntemperature: 0\n" + LOGIC, r"repeats at temperature 0 are all alike"),
        ("backend: openai\n" + LOGIC, r"needs a base_url"),
        ("base_url: http://h/v1\n" + LOGIC, r"base_url needs model"),
        ("base_url: http://h/v1\nbackend: local\nmodel: m\n" + LOGIC, r"exclude each other"),
        ("categories: {a: [aiw], b: [aiw]}\n", r"aiw is listed twice; give one another name"),
        ("categories: {a: {x: {environment: y, seed: 1}}}\n", r"an environment takes no seed"),
        ("model: tiny\n", r"'categories' is missing"),
    ],
)
def test_mistakes_say_where_and_what(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, text)


def test_checkpoints_of_two_runs_have_folders_of_their_own(tmp_path):
    config = load(tmp_path, LOGIC, "model=outputs/legs/checkpoint-100")
    assert config.output_dir == "outputs/eval/x/legs-checkpoint-100"
