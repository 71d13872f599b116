"""What a checkpoint holds beside weights."""

from types import SimpleNamespace

import pytest
from transformers.trainer_utils import SaveStrategy

from grpo_gym.training.model_files import check_adapters_can_be_saved


def trainer(fsdp_version, uses_peft, save_strategy):
    plugin = SimpleNamespace(fsdp_version=fsdp_version) if fsdp_version else None
    return SimpleNamespace(
        is_fsdp_enabled=bool(fsdp_version),
        accelerator=SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin)),
        model=SimpleNamespace(peft_config={}) if uses_peft else object(),
        args=SimpleNamespace(save_strategy=save_strategy),
    )


def test_adapters_that_would_be_saved_empty_are_refused():
    with pytest.raises(ValueError, match="use FSDP2"):
        check_adapters_can_be_saved(trainer(1, True, SaveStrategy.STEPS))
    with pytest.warns(UserWarning, match="leaves no adapters"):
        check_adapters_can_be_saved(trainer(1, True, SaveStrategy.NO))


@pytest.mark.parametrize(("fsdp_version", "uses_peft"), [(1, False), (2, True), (None, True)])
def test_others_may_train(fsdp_version, uses_peft, recwarn):
    check_adapters_can_be_saved(trainer(fsdp_version, uses_peft, SaveStrategy.STEPS))
    assert not recwarn
