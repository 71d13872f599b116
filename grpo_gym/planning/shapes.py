"""The numbers of a decoder that its memory and its speed follow from, and a table of well-known ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from grpo_gym.models import resolve_model


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A Llama-like decoder (Llama, Mistral, Qwen2, Qwen3, SmolLM2, Gemma 3).

    Attributes:
        hidden_size: width of the residual stream.
        intermediate_size: width of the gated MLP.
        num_layers: decoder layers.
        num_heads: query heads.
        num_kv_heads: key and value heads.
        head_dim: width of a head.
        vocab_size: rows of the embedding.
        tied: whether the LM head is the embedding.
        qkv_bias: whether query, key and value projections have biases (Qwen2).
        qk_norm: whether queries and keys are normalised (Qwen3, Gemma 3).
        norms_per_layer: RMS norms over the residual stream in a layer: 2, in Gemma 3 4.
    """

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    tied: bool
    qkv_bias: bool = False
    qk_norm: bool = False
    norms_per_layer: int = 2

    @property
    def query_size(self) -> int:
        """Width of all query heads."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of all key heads; that of all value heads is the same."""
        return self.num_kv_heads * self.head_dim

    @property
    def layer_matrices(self) -> int:
        """Parameters of one layer that multiply every token: projections of attention and MLP."""
        attention = self.hidden_size * (2 * self.query_size + 2 * self.kv_size)
        return attention + 3 * self.hidden_size * self.intermediate_size

    @property
    def trunk_matrices(self) -> int:
        """Parameters of all layers that multiply every token."""
        return self.num_layers * self.layer_matrices

    @property
    def head_matrix(self) -> int:
        """Parameters of the LM head (tied or not)."""
        return self.hidden_size * self.vocab_size

    @property
    def num_parameters(self) -> int:
        """All parameters, a tied head counted once."""
        vectors = self.norms_per_layer * self.hidden_size
        vectors += (self.query_size + 2 * self.kv_size) if self.qkv_bias else 0
        vectors += 2 * self.head_dim if self.qk_norm else 0
        embeddings = self.head_matrix * (1 if self.tied else 2)
        return self.trunk_matrices + self.num_layers * vectors + embeddings + self.hidden_size

    def kv_bytes_per_token(self, width: int) -> int:
        """Bytes that a token leaves in the KV cache, `width` bytes a number."""
        return 2 * self.num_layers * self.kv_size * width

    def lora_parameters(self, rank: int) -> int:
        """Parameters of adapters of a rank on all linear layers but the head."""
        h, i, q, kv = self.hidden_size, self.intermediate_size, self.query_size, self.kv_size
        sides = 2 * (h + q) + 2 * (h + kv) + 3 * (h + i)
        return self.num_layers * rank * sides

    @classmethod
    def from_config(cls, config: Any) -> ModelShape:
        """The shape of a transformers configuration.

        Raises:
            ValueError: not a dense decoder with a gated MLP.
        """
        text = config.get_text_config()
        kind = text.model_type
        if kind not in _KINDS:
            raise ValueError(f"model_type {kind!r} cannot be planned; known are {', '.join(sorted(_KINDS))}.")
        head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        return cls(
            hidden_size=text.hidden_size,
            intermediate_size=text.intermediate_size,
            num_layers=text.num_hidden_layers,
            num_heads=text.num_attention_heads,
            num_kv_heads=text.num_key_value_heads,
            head_dim=head_dim,
            vocab_size=text.vocab_size,
            tied=bool(text.tie_word_embeddings),
            **_KINDS[kind],
        )


_KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {},
    "qwen2": {"qkv_bias": True},
    "qwen3": {"qk_norm": True},
    "gemma3_text": {"qk_norm": True, "norms_per_layer": 4},
}
"""What `model_type` implies beside the sizes."""

_Q2, _Q3 = _KINDS["qwen2"], _KINDS["qwen3"]
# hidden, MLP, layers, heads, KV heads, head size, vocabulary, tied: from the models' public config.json.
KNOWN: dict[str, ModelShape] = {
    "smollm2-135m": ModelShape(576, 1536, 30, 9, 3, 64, 49152, True),
    "llama-3.2-1b": ModelShape(2048, 8192, 16, 32, 8, 64, 128256, True),
    "llama-3.2-3b": ModelShape(3072, 8192, 28, 24, 8, 128, 128256, True),
    "llama-3.1-8b": ModelShape(4096, 14336, 32, 32, 8, 128, 128256, False),
    "qwen2.5-0.5b": ModelShape(896, 4864, 24, 14, 2, 64, 151936, True, **_Q2),
    "qwen2.5-1.5b": ModelShape(1536, 8960, 28, 12, 2, 128, 151936, True, **_Q2),
    "qwen2.5-3b": ModelShape(2048, 11008, 36, 16, 2, 128, 151936, True, **_Q2),
    "qwen2.5-7b": ModelShape(3584, 18944, 28, 28, 4, 128, 152064, False, **_Q2),
    "qwen2.5-14b": ModelShape(5120, 13824, 48, 40, 8, 128, 152064, False, **_Q2),
    "qwen2.5-32b": ModelShape(5120, 27648, 64, 40, 8, 128, 152064, False, **_Q2),
    "qwen3-0.6b": ModelShape(1024, 3072, 28, 16, 8, 128, 151936, True, **_Q3),
    "qwen3-1.7b": ModelShape(2048, 6144, 28, 16, 8, 128, 151936, True, **_Q3),
    "qwen3-4b": ModelShape(2560, 9728, 36, 32, 8, 128, 151936, True, **_Q3),
    "qwen3-8b": ModelShape(4096, 12288, 36, 32, 8, 128, 151936, False, **_Q3),
    "gemma-3-1b": ModelShape(1152, 6912, 26, 4, 1, 256, 262144, True, **_KINDS["gemma3_text"]),
}


def find_shape(name: str, trust_remote_code: bool = False) -> ModelShape:
    """The shape of a model: from its configuration where it lies on this machine, else from the table.

    Raises:
        ValueError: neither knows it.
    """
    known = known_shape(name)
    if known is not None:
        return known
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(resolve_model(name), trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"the shape of {name} is not known: give a folder with its config.json, or one of {', '.join(KNOWN)}."
        ) from error
    return ModelShape.from_config(config)


def known_shape(name: str) -> ModelShape | None:
    """The table's entry that a Hub name begins with, such as `Qwen/Qwen2.5-7B-Instruct`."""
    base = name.rsplit("/", 1)[-1].lower()
    matches = [key for key in KNOWN if base == key or base.startswith(f"{key}-")]
    return KNOWN[max(matches, key=len)] if matches else None
