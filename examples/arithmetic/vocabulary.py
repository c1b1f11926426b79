"""The 58 words of the demo's model, and its tokenizer: one word, one token."""

from __future__ import annotations

from typing import Final

from arithmetic import NUMBERS, OPERATIONS
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS, USER, ASSISTANT = CONTROL = ("<pad>", "<bos>", "<eos>", "<|user|>", "<|assistant|>")
TASKS: Final = ("solve", "judge", "compare", "reflect")
LABELS: Final = ("answer:", "A:", "B:", "reasoning:", "question:")
YES, NO, A, B = VERDICTS = ("Yes", "No", "A", "B")
BOX, CLOSE = "\\boxed{", "}"
WORDS: Final = (*CONTROL, *TASKS, *LABELS, *VERDICTS, BOX, CLOSE, *(str(n) for n in range(NUMBERS)), *OPERATIONS)
IDS: Final = {word: index for index, word in enumerate(WORDS)}

CHAT_TEMPLATE: Final = (
    "<bos> {% for m in messages %}"
    "{% if m['role'] == 'user' %}<|user|> {{ m['content'] }} "
    "{% elif m['role'] == 'assistant' %}<|assistant|> {{ m['content'] }} <eos> "
    "{% else %}{{ raise_exception('this model knows user and assistant turns only') }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def encode(words: list[str]) -> list[int]:
    return [IDS[word] for word in words]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A word outside the vocabulary becomes ``<pad>``; all control words are special tokens."""
    tokenizer = Tokenizer(WordLevel(IDS, unk_token=PAD))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in CONTROL])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        extra_special_tokens=[USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=64,
    )
