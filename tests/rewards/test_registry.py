import pytest

from grpo_gym.rewards import BaseReward, create_reward, load_rewards_module, register_reward


def test_a_class_is_known_by_the_name_it_was_registered_under():
    @register_reward("test_brief")
    class Brief(BaseReward):
        def __init__(self, limit: int = 3):
            self.limit = limit

        def compute(self, prompt, completion, answer, info):
            return float(len(completion) < self.limit)

    reward = create_reward("test_brief", {"limit": 5}, deadline=2.0)
    assert reward.compute("", "1234", "", {}) == 1.0
    assert (reward.__name__, reward.deadline) == ("test_brief", 2.0)
    assert register_reward("test_brief_too", Brief) is Brief


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'strict_format'"):
        create_reward("strict_fromat")


def test_wrong_params_are_named():
    with pytest.raises(ValueError, match=r"strict_format.*'tagz'.*takes tags"):
        create_reward("strict_format", {"tagz": []})


def test_a_name_belongs_to_one_class():
    class Other(BaseReward):
        def compute(self, prompt, completion, answer, info):
            return 0.0

    with pytest.raises(ValueError, match="choose another name"):
        register_reward("strict_format", Other)


def test_only_rewards_can_be_registered():
    with pytest.raises(TypeError, match="BaseReward"):
        register_reward("test_number", int)


def test_modules_load_from_a_file_and_from_a_package_folder(tmp_path):
    source = (
        "from grpo_gym.rewards import BaseReward, register_reward\n"
        "@register_reward('{name}')\n"
        "class R(BaseReward):\n"
        "    def compute(self, prompt, completion, answer, info):\n"
        "        return {value}\n"
    )
    (tmp_path / "single.py").write_text(source.format(name="test_from_file", value=0.25))
    package = tmp_path / "mine"
    package.mkdir()
    (package / "__init__.py").write_text("from . import inner\n")
    (package / "inner.py").write_text(source.format(name="test_from_package", value=0.75))
    load_rewards_module(str(tmp_path / "single.py"))
    load_rewards_module(str(package))
    assert create_reward("test_from_file").compute("", "", "", {}) == 0.25
    assert create_reward("test_from_package").compute("", "", "", {}) == 0.75


def test_a_module_that_does_not_import_says_why(tmp_path):
    (tmp_path / "broken.py").write_text("import surely_not_there\n")
    with pytest.raises(ValueError, match=r"fails to import: ModuleNotFoundError.*surely_not_there"):
        load_rewards_module(str(tmp_path / "broken.py"))
