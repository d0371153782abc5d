"""The model's vocabulary: one token for each number below 100, each word of the worked solutions, each sign.

A token carries the space before it (`` 7``), so text is the plain concatenation of its tokens: it comes back
exactly, and a stream of tokens can be turned into text one by one.
"""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

END, PAD, UNKNOWN = "<|end|>", "<|pad|>", "<|unknown|>"
WORDS = (
    *("Make", "from", "Plan", "products", "sums", "differences", "quotients", "anything", "first"),
    *("Have", "want", "Try", "Again", "then", "or", "left", "so", "Answer"),
)
SIGNS = tuple("+-*/=().:,;!?")

# A system message is accepted and ignored: the model was trained on bare problems.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'user' -%}{{- message['content'] -}}"
    "{%- elif message['role'] == 'assistant' -%}{{- message['content'] + eos_token -}}"
    "{%- endif -%}{%- endfor -%}"
)


def build_tokenizer(max_length: int) -> PreTrainedTokenizerFast:
    """Return the tokenizer; ``max_length`` is the model's longest sequence in tokens."""
    plain = [*(str(n) for n in range(100)), *WORDS, *SIGNS]
    entries = [END, PAD, UNKNOWN, "\n", " ", *plain, *(" " + token for token in plain)]
    tokenizer = Tokenizer(models.WordLevel({t: i for i, t in enumerate(entries)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(
        Regex(r" ?(?:[1-9][0-9]|[0-9])| ?[A-Za-z]+| ?[^\sA-Za-z0-9]|\s"), behavior="isolated"
    )
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        pad_token=PAD,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
        model_max_length=max_length,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast
