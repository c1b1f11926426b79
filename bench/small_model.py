"""A random model of 3.4 million parameters for benchmarks of generation: its completions have mixed lengths."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

VOCABULARY: Final = 512
POSITIONS: Final = 512
ENDS: Final = list(range(2, 9))
"""End tokens: with a nearly even distribution over the vocabulary, lengths are geometric with a mean of 73."""


def small_model(seed: int) -> Any:
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=ENDS[0],
        pad_token_id=0,
    )
    return Qwen3ForCausalLM(config).eval()


def save_small_model(folder: Path) -> Path:
    """As ``from_pretrained`` loads it, with a tokenizer of numbered words and a chat template."""
    small_model(0).save_pretrained(folder)
    GenerationConfig(eos_token_id=ENDS, pad_token_id=0, bos_token_id=1).save_pretrained(folder)
    words = {"<pad>": 0, "<bos>": 1, "<eos>": ENDS[0]} | {f"w{index}": index for index in range(3, VOCABULARY)}
    raw = Tokenizer(models.WordLevel(words, unk_token="w9"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")
    fast.chat_template = "<bos> {% for m in messages %}{{ m['content'] }} {% endfor %}"
    fast.save_pretrained(folder)
    return folder
