"""Random Llama-like models of a given size, as directories that both engines load."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

MB: Final = 10**6
VOCABULARY: Final = 1000
HEAD: Final = 64
END: Final = 0


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


def random_llama(config: LlamaConfig, seed: int = 0) -> Any:
    """float32, with transformers' usual initialisation: standard deviation 0.02."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(config)


def save_random_llama(folder: Path, megabytes: int) -> Path:
    random_llama(config_of(megabytes)).save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    return folder


def _tokenizer() -> Any:
    words = {"<end>": END} | {f"t{index}": index for index in range(1, VOCABULARY)}
    raw = Tokenizer(models.WordLevel(words, unk_token="t1"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<end>", pad_token="<end>")
    fast.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    return fast
