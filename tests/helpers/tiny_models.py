"""Random Hugging Face model directories of several families: a second to write, small enough for every engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal

import torch
from tiny_llama import EOS, VOCABULARY, tiny_tokenizer
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen3Config,
)

Family = Literal["llama", "qwen3", "gemma3", "mistral"]
FAMILIES: Final[tuple[Family, ...]] = ("llama", "qwen3", "gemma3", "mistral")
POSITIONS: Final = 512
CHAT_TEMPLATE: Final = "<bos> {% for m in messages %}{{ m['content'] }} {% endfor %}"

_SHAPE: Final[dict[str, Any]] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,  # the smallest that vLLM's CPU attention takes
    "max_position_embeddings": POSITIONS,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": EOS,
    "pad_token_id": 0,
}


def config_of(family: Family, *, vocabulary: int = VOCABULARY, **changes: Any) -> PretrainedConfig:
    """Grouped-query attention in all; Qwen3 norms queries and keys, Gemma 3 and Mistral slide a window of 8."""
    shape = {**_SHAPE, "vocab_size": vocabulary, **changes}
    if family == "llama":
        return LlamaConfig(**shape, tie_word_embeddings=True)
    if family == "qwen3":
        return Qwen3Config(**shape, tie_word_embeddings=False)
    if family == "gemma3":
        layers = ["sliding_attention", "full_attention"]
        return Gemma3TextConfig(**shape, sliding_window=8, layer_types=layers, query_pre_attn_scalar=32)
    return MistralConfig(**shape, sliding_window=8, tie_word_embeddings=False)


def tiny_model(family: Family, seed: int = 0, **changes: Any) -> Any:
    """A random causal LM in float32. ``changes``: fields of its config, and ``vocabulary``."""
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config_of(family, **changes), dtype=torch.float32).eval()


def save_tiny_model(family: Family, folder: Path, seed: int = 0, **changes: Any) -> Path:
    """Model, tokenizer and chat template as ``from_pretrained`` loads them. Returns the folder."""
    tiny_model(family, seed, **changes).save_pretrained(folder)
    tiny_tokenizer(CHAT_TEMPLATE).save_pretrained(folder)
    return folder
