"""Checkpoints of one process: plain and LoRA, in every form they are stored in. Sharded ones: tests/end_to_end."""

import json
import re
import stat

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from grpo_gym.cli import main
from grpo_gym.export import hub, merge
from grpo_gym.export.export import export_checkpoint
from grpo_gym.export.names import adapter_names, checkpoint_names, skeleton
from grpo_gym.export.sources import TensorsSource
from grpo_gym.export.writer import write_weights
from grpo_gym.models import TINY_MODEL_PATH

TEXT = torch.arange(20, 60)[None]


@torch.no_grad()
def logprobs(model):
    return model(TEXT).logits.float().log_softmax(-1)


def changed_model(**settings):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(TINY_MODEL_PATH, **settings)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.01)
    return model


@pytest.fixture
def plain(tmp_path):
    """A checkpoint of a changed model, and the model."""
    model = changed_model()
    folder = tmp_path / "run/checkpoint-7"
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(TINY_MODEL_PATH).save_pretrained(folder)
    return folder, model


@pytest.fixture
def lora(tmp_path):
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(TINY_MODEL_PATH),
        LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", use_rslora=True),
    )
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    folder = tmp_path / "run/checkpoint-7"
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(TINY_MODEL_PATH).save_pretrained(folder)
    return folder, model.eval()


def same_logprobs(folder, model, atol=1e-6, **settings):
    loaded = AutoModelForCausalLM.from_pretrained(folder, **settings)
    torch.testing.assert_close(logprobs(loaded), logprobs(model), atol=atol, rtol=0)
    return loaded


def test_a_plain_checkpoint(plain, tmp_path, capsys):
    folder, model = plain
    out = tmp_path / "models/out"
    assert main(["export", str(folder), str(out)]) == 0
    assert "from a plain checkpoint" in capsys.readouterr().out
    same_logprobs(out, model, atol=0)
    chat = [{"role": "user", "content": "How many legs has a cow?"}]
    expected = AutoTokenizer.from_pretrained(TINY_MODEL_PATH).apply_chat_template(chat, tokenize=False)
    assert AutoTokenizer.from_pretrained(out).apply_chat_template(chat, tokenize=False) == expected
    assert (out / "generation_config.json").is_file()
    assert stat.S_IMODE(out.stat().st_mode) == 0o755
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_another_dtype_and_several_files(plain, tmp_path):
    folder, model = plain
    out = tmp_path / "out"
    done = export_checkpoint(folder, out, name="me/legs", dtype="bfloat16", max_shard_bytes=10**6)
    assert done.num_parameters == model.num_parameters()
    assert len(list(out.glob("model-*.safetensors"))) > 2
    assert max(path.stat().st_size for path in out.glob("model-*")) < 1.1 * 10**6
    expected = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    loaded = same_logprobs(out, expected, dtype="auto", atol=0)
    assert loaded.dtype == torch.bfloat16
    assert "# me/legs" in (out / "README.md").read_text()


def test_files_of_torch_save(plain, tmp_path):
    folder, model = plain
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    export_checkpoint(folder, tmp_path / "out")
    same_logprobs(tmp_path / "out", model, atol=0)


def test_adapters_stay_adapters(lora, tmp_path):
    folder, model = lora
    done = export_checkpoint(folder, tmp_path / "out")
    assert done.is_adapter
    base = AutoModelForCausalLM.from_pretrained(TINY_MODEL_PATH)
    loaded = PeftModel.from_pretrained(base, tmp_path / "out").eval()
    torch.testing.assert_close(logprobs(loaded), logprobs(model), atol=0, rtol=0)


def test_adapters_are_merged(lora, tmp_path):
    folder, model = lora
    done = export_checkpoint(folder, tmp_path / "out", merge_lora=True)
    assert not done.is_adapter
    assert not (tmp_path / "out/adapter_config.json").exists()
    same_logprobs(tmp_path / "out", model, atol=1e-4)
    export_checkpoint(folder, tmp_path / "half", dtype="bfloat16", merge_lora=True)
    whole, half = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "half"))
    assert all(torch.equal(half[name], whole[name].bfloat16()) for name in whole)
    assert json.loads((tmp_path / "half/config.json").read_text())["dtype"] == "bfloat16"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("prefix", "suffix"), [("", ""), ("module.", ""), ("_orig_mod.", ".default"), ("", ".default")]
)
def test_adapters_are_found_under_the_names_of_the_wrappers(prefix, suffix):
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A"
    assert adapter_names([f"{prefix}{name}{suffix}.weight"]) == {
        f"{name}.weight": f"{prefix}{name}{suffix}.weight"
    }


def small_config(**settings):
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 32}
    return LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=2, **settings)


@pytest.mark.parametrize("kept", [("embed",), ("head",), ("embed", "head")])
def test_tied_embeddings_come_once_wherever_they_were_kept(kept):
    model = skeleton(small_config(tie_word_embeddings=True))
    tied = {"embed": "model.embed_tokens.weight", "head": "lm_head.weight"}
    found = (model.state_dict().keys() - set(tied.values())) | {tied[each] for each in kept}
    names = checkpoint_names(found, model)
    assert names.keys() == model.state_dict().keys() - {"lm_head.weight"}
    assert names["model.embed_tokens.weight"] == tied[kept[0]]


def test_weights_of_another_model_are_named():
    model = skeleton(small_config(tie_word_embeddings=False))
    found = set(model.state_dict())
    with pytest.raises(ValueError, match=r"lacks lm_head\.weight"):
        checkpoint_names(found - {"lm_head.weight"}, model)
    with pytest.raises(ValueError, match=r"holds model\.layers\.1"):
        checkpoint_names(found | {"model.layers.1.mlp.up_proj.weight"}, model)


def test_only_one_file_at_a_time_is_in_memory(tmp_path):
    tensors = {f"layer{index}": torch.full((250,), float(index)) for index in range(10)}

    class Counting(TensorsSource):
        most = 0

        def read(self, names):
            names = list(names)
            self.most = max(self.most, len(names))
            return super().read(names)

    source = Counting(tensors, "plain")
    write_weights(source, {name: name for name in tensors}, tmp_path, max_shard_bytes=2000)
    assert source.most == 2
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) == 5
    for name, tensor in tensors.items():
        assert torch.equal(load_file(tmp_path / index["weight_map"][name])[name], tensor)


def without(name):
    return lambda folder: (folder / name).unlink()


def empty_of_weights(folder):
    (folder / "model.safetensors").unlink()
    (folder / "checkpoint-20").mkdir()
    (folder / "checkpoint-100").mkdir()


@pytest.mark.parametrize(
    ("spoil", "flags", "problem"),
    [
        (without("config.json"), [], r"has no config\.json"),
        (without("tokenizer_config.json"), [], r"has no tokenizer_config\.json"),
        (without("model.safetensors"), [], "holds no weights"),
        (empty_of_weights, [], "such as .*checkpoint-100"),
        (None, ["--merge-lora"], "nothing to merge"),
        (None, ["--push"], "--name USER/MODEL"),
        (None, ["--push", "--name", "me/legs"], "HF_TOKEN"),
    ],
)
def test_what_is_missing_is_said_in_one_line_and_nothing_is_left(
    plain, tmp_path, capsys, monkeypatch, spoil, flags, problem
):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    folder, _ = plain
    if spoil:
        spoil(folder)
    out = tmp_path / "models/out"
    assert main(["export", str(folder), str(out), *flags]) == 2
    message = capsys.readouterr().err
    assert message.startswith("grpo-gym: error: ")
    assert message.count("\n") == 1
    assert re.search(problem, message)
    assert not out.exists()
    assert not out.parent.exists() or not list(out.parent.iterdir())


def test_a_folder_that_exists_is_refused(plain, tmp_path, capsys):
    folder, _ = plain
    (tmp_path / "out").mkdir()
    assert main(["export", str(folder), str(tmp_path / "out")]) == 2
    assert "exists" in capsys.readouterr().err


def test_a_base_model_that_moved_is_named(lora, tmp_path, capsys):
    folder, _ = lora
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "./gone"}))
    assert main(["export", str(folder), str(tmp_path / "out"), "--merge-lora"]) == 2
    assert "base_model_name_or_path" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_base_model_is_of_the_revision_that_was_trained(lora, tmp_path, monkeypatch):
    """Two folders stand for two revisions of a model of the Hub."""
    folder, model = lora
    config = json.loads((folder / "adapter_config.json").read_text())
    config |= {"base_model_name_or_path": "someone/model", "revision": "v2"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    changed_model().save_pretrained(tmp_path / "main")
    places = {"v2": TINY_MODEL_PATH, "main": tmp_path / "main"}

    def from_revision(auto_class):
        real = auto_class.from_pretrained
        return lambda name, revision="main", **more: real(
            places[revision] if name == "someone/model" else name, **more
        )

    for auto_class in (merge.AutoConfig, merge.AutoModelForCausalLM):
        monkeypatch.setattr(auto_class, "from_pretrained", from_revision(auto_class))
    export_checkpoint(folder, tmp_path / "out", merge_lora=True)
    monkeypatch.undo()
    same_logprobs(tmp_path / "out", model, atol=1e-4)


def test_push_uploads_the_folder(plain, tmp_path, monkeypatch, capsys):
    calls = []

    class FakeApi:
        endpoint = "https://hub.example"

        def __init__(self, token):
            calls.append(token)

        def create_repo(self, name, exist_ok):
            calls.append(name)

        def upload_folder(self, repo_id, folder_path, commit_message):
            calls.append(sorted(path.name for path in folder_path.iterdir()))

    monkeypatch.setattr("huggingface_hub.HfApi", FakeApi)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    folder, _ = plain
    assert main(["export", str(folder), str(tmp_path / "out"), "--push", "--name", "me/legs"]) == 0
    assert calls[:2] == ["hf_secret", "me/legs"]
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= set(calls[2])
    printed = capsys.readouterr()
    assert "https://hub.example/me/legs" in printed.out
    assert "hf_secret" not in printed.out + printed.err


def test_the_hub_s_refusal_is_one_line(plain, tmp_path, monkeypatch, capsys):
    def refuse(*arguments):
        raise OSError("403: no write access")

    monkeypatch.setattr(hub, "push_folder", refuse)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    folder, _ = plain
    assert main(["export", str(folder), str(tmp_path / "out"), "--push", "--name", "me/legs"]) == 1
    assert capsys.readouterr().err == "grpo-gym: error: 403: no write access\n"


def test_a_file_of_an_index_that_is_gone_is_named(plain, tmp_path):
    folder, model = plain
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    names = sorted(tensors)
    save_file({name: tensors[name] for name in names[:5]}, folder / "model-00001-of-00002.safetensors")
    weight_map = {name: f"model-0000{1 + (name not in names[:5])}-of-00002.safetensors" for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ValueError, match=r"lacks model-00002-of-00002\.safetensors"):
        export_checkpoint(folder, tmp_path / "out")
