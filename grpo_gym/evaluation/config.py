"""What `grpo-gym eval` is told: which model, which datasets in which categories, how to sample."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from grpo_gym.config.compose import compose
from grpo_gym.config.errors import ConfigError, KeyPath, nearest
from grpo_gym.config.load import validation_error
from grpo_gym.config.normalize import BASE_KEY
from grpo_gym.config.schema import Section
from grpo_gym.config.tree import Tree

Backend = Literal["local", "server", "openai"]


class EvalDataset(Section):
    """One dataset: a Reasoning Gym task, or any installed Verifiers environment."""

    dataset: str | None = Field(
        default=None, description="Reasoning Gym task; None: the name the dataset is listed under."
    )
    environment: str | None = Field(
        default=None, description="Id of an installed Verifiers environment, instead of a task."
    )
    env_args: dict[str, Any] = Field(default_factory=dict, description="Arguments of its load_environment.")
    size: int | None = Field(default=None, ge=1, description="Problems. None: default_size.")
    seed: int | None = Field(default=None, ge=0, description="Seed of a task's problems. None: default_seed.")
    params: dict[str, Any] = Field(default_factory=dict, description="The task's own settings.")

    @model_validator(mode="after")
    def _one_kind(self) -> EvalDataset:
        task_only = [name for name in ("dataset", "seed", "params") if getattr(self, name)]
        if self.environment and task_only:
            raise ValueError(f"an environment takes no {task_only[0]}; write what it needs in env_args")
        if self.env_args and not self.environment:
            raise ValueError("env_args belong to an environment; the settings of a task are its params")
        return self


class EvalConfig(Section):
    """A whole evaluation."""

    model: str | None = Field(
        default=None, description="Folder of a checkpoint, name, or 'tiny'. None: see default_model()."
    )
    backend: Backend | None = Field(
        default=None,
        description="local: in this process; server: a vf-vllm that is started and stopped here; openai: base_url. "
        "None: openai where base_url is set, else local.",
    )
    base_url: str | None = Field(default=None, description="Of an OpenAI-compatible API, with its /v1.")
    api_key_var: str | None = Field(default=None, description="Environment variable that holds its key.")
    dtype: str | None = Field(
        default=None, description="Of the weights in this process. None: bfloat16 on a GPU, else float32."
    )
    max_model_len: int | None = Field(default=None, ge=1, description="Context. None: the model's own.")
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1, description="GPU share of `server`.")
    server_args: list[str] = Field(default_factory=list, description="More flags of vf-vllm.")
    server_timeout: float = Field(default=300.0, gt=0, description="Seconds a server may take to start.")
    request_timeout: float = Field(default=600.0, gt=0, description="Seconds one completion may take.")
    chat_template_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="For the chat template, such as {enable_thinking: false}."
    )

    temperature: float = Field(default=1.0, ge=0, description="0 is greedy.")
    top_p: float = Field(default=1.0, gt=0, le=1, description="Nucleus sampling.")
    max_tokens: int = Field(default=1024, ge=1, description="Longest completion.")
    repeats: int = Field(default=1, ge=1, description="Samples per problem; pass@k needs at least k.")
    seed: int = Field(default=0, ge=0, description="Of the samples, in this process.")

    categories: dict[str, dict[str, EvalDataset]] = Field(
        min_length=1, description="Category -> name -> dataset; or lists, as Reasoning Gym writes them."
    )
    default_size: int = Field(default=50, ge=1, description="Problems of a dataset that names no size.")
    default_seed: int = Field(default=0, ge=0, description="Seed of a dataset that names none.")
    system_prompt: str | None = Field(
        default="default", description="Of Reasoning Gym tasks: 'default', a text, or null."
    )
    few_shot: list[dict[str, str]] | None = Field(
        default=None, description="Messages between system prompt and question, for tasks."
    )
    think: bool = Field(default=False, description="Whether tasks ask for <think> before <answer>.")

    output_dir: str | None = Field(
        default=None, description="None: outputs/eval/<name of the file>/<name of the model>."
    )
    max_concurrent: int = Field(default=64, ge=1, description="Completions in flight.")
    max_retries: int = Field(
        default=2, ge=0, description="How often a completion that was not answered is tried again."
    )

    @field_validator("categories", mode="before")
    @classmethod
    def _as_mappings(cls, categories: Any) -> Any:
        """Accept lists of names, `{task: null}`, and Reasoning Gym's lists of `category` and `datasets`."""
        if isinstance(categories, list):
            categories = _by_category(categories)
        if not isinstance(categories, dict):
            return categories
        return {category: _datasets(category, found) for category, found in categories.items()}

    @model_validator(mode="after")
    def _fits_together(self) -> EvalConfig:
        if self.backend == "openai" and not self.base_url:
            raise ValueError("backend openai needs a base_url, such as http://127.0.0.1:8000/v1")
        if self.base_url and self.backend in ("local", "server"):
            raise ValueError(f"base_url and backend {self.backend} exclude each other; leave one of them out")
        if self.base_url and not self.model:
            raise ValueError("base_url needs model, the name the API knows it by")
        if self.temperature == 0 and self.repeats > 1:
            raise ValueError("repeats at temperature 0 are all alike; use repeats=1 or a higher temperature")
        self._check_names_once()
        return self

    def _check_names_once(self) -> None:
        names = [name for members in self.categories.values() for name in members]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(
                f"{repeated[0]} is listed twice; give one another name: "
                f"{repeated[0]}_hard: {{dataset: {repeated[0]}, params: {{...}}}}"
            )

    @property
    def resolved_backend(self) -> Backend:
        """`backend` with its default."""
        return self.backend or ("openai" if self.base_url else "local")


def load_evaluation(path: str | Path, overrides: Sequence[str] = ()) -> EvalConfig:
    """The evaluation of a YAML file, with `key=value` overrides; `_base_` and `${...}` work as in experiments.

    Raises:
        ConfigError: with file, line, key and what to write instead, one line per problem.
    """
    tree = compose(Path(path), overrides, normalize=_without_base)
    try:
        config = EvalConfig.model_validate(tree.values)
    except ValidationError as error:
        raise validation_error(error, tree, _suggestion) from error
    _check_tasks(config, tree)
    if config.output_dir is None:
        config.output_dir = str(Path("outputs", "eval", Path(path).stem, _short_name(config.model)))
    return config


def _short_name(model: str | None) -> str:
    """A folder name for the model; every run has a checkpoint-100, so those keep the name of theirs."""
    if model is None:
        return "default"
    path = Path(model)
    return f"{path.parent.name}-{path.name}" if path.name.startswith("checkpoint-") else path.name


def _without_base(tree: Tree) -> Tree:
    values = {key: value for key, value in tree.values.items() if key != BASE_KEY}
    return Tree(values, tree.origins)


def _suggestion(path: KeyPath) -> str:
    known = EvalDataset.model_fields if path[0] == "categories" else EvalConfig.model_fields
    return nearest(path[-1], known) or f"; there are {', '.join(known)}"


def _check_tasks(config: EvalConfig, tree: Tree) -> None:
    """Check task names and params with the package that knows them."""
    from reasoning_gym_tasks.tasks import parse_gym

    for category, members in config.categories.items():
        for name, entry in members.items():
            if entry.environment:
                continue
            try:
                parse_gym(entry.dataset or name, entry.params)
            except ValueError as error:
                raise ConfigError.at(tree.origins, ("categories", category, name), str(error)) from error


def _by_category(categories: list[Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for item in categories:
        if not isinstance(item, dict) or set(item) != {"category", "datasets"}:
            raise ValueError(f"a category is {{category: NAME, datasets: [...]}}, not {item!r}")
        if item["category"] in found:
            raise ValueError(f"category {item['category']} is listed twice")
        found[str(item["category"])] = item["datasets"]
    return found


def _datasets(category: str, found: Any) -> Any:
    if isinstance(found, str):
        found = [found]
    if isinstance(found, dict):
        return {name: entry or {} for name, entry in found.items()}
    if not isinstance(found, list):
        return found
    entries: dict[str, Any] = {}
    for item in found:
        fields = {"dataset": item} if isinstance(item, str) else dict(item)
        name = fields.pop("name", None) or fields.get("dataset") or fields.get("environment")
        if not name or name in entries:
            raise ValueError(f"in {category}: each dataset needs a name of its own (name: ...), not {item!r}")
        entries[name] = fields
    return entries
