"""Random Llama-like models of a given size, as directories that both engines load."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

MB: Final = 10**6
VOCABULARY: Final = 1000
HEAD: Final = 64
END: Final = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int

    @property
    def parameters(self) -> int:
        """Number of them, the embedding counted once."""
        head = self.hidden // self.heads
        attention = 2 * self.hidden * (self.hidden + head * self.kv_heads)
        layer = attention + 3 * self.hidden * self.inner + 2 * self.hidden
        return self.layers * layer + self.vocabulary * self.hidden + self.hidden


SHAPES: Final = {
    "tiny": Shape(hidden=64, inner=128, layers=2, heads=2, kv_heads=1, vocabulary=VOCABULARY),
    "500m": Shape(hidden=1024, inner=4096, layers=24, heads=16, kv_heads=8, vocabulary=128_256),
    "1b": Shape(hidden=2048, inner=8192, layers=16, heads=32, kv_heads=8, vocabulary=128_256),
}
"""``1b`` has the shape of Llama 3.2 1B; ``tiny`` is for trying a benchmark out."""


def config_like(name: str) -> LlamaConfig:
    """Of ``SHAPES``."""
    shape = SHAPES[name]
    return LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.hidden // shape.heads,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=END,
        eos_token_id=END,
        pad_token_id=END,
    )


def config_of(megabytes: int) -> LlamaConfig:
    """About this many MB of float32 parameters; wider with size, as models are."""
    hidden = 256 if megabytes < 50 else 512 if megabytes < 500 else 1024
    inner = 11 * hidden // 4
    per_layer = 4 * hidden * hidden + 3 * hidden * inner
    layers = max(1, round((megabytes * MB / 4 - VOCABULARY * hidden) / per_layer))
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=hidden // HEAD,
        num_key_value_heads=hidden // HEAD,
        head_dim=HEAD,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=END,
        eos_token_id=END,
        pad_token_id=END,
    )


def random_llama(config: LlamaConfig, seed: int = 0, device: str = "cpu") -> Any:
    """float32, with transformers' usual initialisation: standard deviation 0.02."""
    torch.manual_seed(seed)
    with torch.device(device):
        return LlamaForCausalLM(config)


def save_random_llama(folder: Path, megabytes: int) -> Path:
    return save(random_llama(config_of(megabytes)), folder)


def save(model: Any, folder: Path) -> Path:
    """Model, tokenizer and chat template, as ``from_pretrained`` loads them."""
    model.save_pretrained(folder)
    _tokenizer(model.config.vocab_size).save_pretrained(folder)
    return folder


def _tokenizer(vocabulary: int) -> Any:
    words = {"<end>": END} | {f"t{index}": index for index in range(1, vocabulary)}
    raw = Tokenizer(models.WordLevel(words, unk_token="t1"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<end>", pad_token="<end>")
    fast.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    return fast
