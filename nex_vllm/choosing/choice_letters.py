"""The letter of a multiple choice answer, A to J, in what a model wrote.

The word "A" is an article far more often than an answer, and "I" a pronoun: both count only where they stand as an
answer would. Where nothing is clear there is no answer: no vote is better than a wrong one.
"""

from __future__ import annotations

import re

_COMMAND = re.compile(r"\\(?:text|textbf|textsf|mathrm|mathbf|mathsf|operatorname)[ ]?\{([^{}\n]{0,200})\}")
_BOX = re.compile(r"\\boxed[ ]?\{[ ]?(?:\(([A-Ja-j])\)|([A-J])[.:)]?(?=[ }])|([a-j])(?=[ ]?\}))[^{}\n]{0,200}\}")
_BOLD = re.compile(r"\*\*[ ]?\(?([A-J])\)?[.:]?[ ]?\*\*")
_MARKUP = re.compile(r"\\[()\[\]]|[*`$]")

# A and I in front of another word are an article and a pronoun, unless the word goes on as an explanation would.
_EXPLAINS = r"(?:because|since|as|is|and|with|for|due|given)\b"
_CAPITAL = rf"(?:[B-HJ]|[AI](?![ \t]+(?!{_EXPLAINS})[a-z]))(?![A-Za-z0-9_'\u2019])"
_SMALL = r"(?:[b-hj](?=\)|\.(?![A-Za-z])|[,;!]|\s*$|\s*\n)|[ai](?=\)|\.(?![A-Za-z])))"
_LETTER = rf"(?:\((?P<in_brackets>[A-Ja-j])\)|(?P<capital>{_CAPITAL})|(?P<small>{_SMALL}))"

_STATED = re.compile(
    r"(?i:\b(?:answer|choice|option)(?:\s(?:is|was|would be|must be|should be|will be)\s?(?:therefore|thus|clearly)?:?"
    r"|\s?[:=]|\s[-\u2013\u2014])\s{0,9}(?:the\s)?(?:option\s|choice\s|answer\s|letter\s)?"
    r"|\b(?:choose|chose|select|pick|go with)\s(?:the\s)?(?:option\s|choice\s|answer\s|letter\s)?)" + _LETTER
)
_IS_CORRECT = re.compile(
    r"(?<![A-Za-z0-9_'\u2019])(?:\((?P<in_brackets>[A-Ja-j])\)|(?P<capital>[A-J]))"
    r"\s(?i:is\s(?:the\s)?(?:most\s)?(?:correct|right|best))\b"
)
_ALONE = re.compile(r"[(\[]?([A-Ja-j])[)\]]?[.:]?")
_IN_BRACKETS = re.compile(r"(?<![A-Za-z0-9_])\(([A-Ja-hj])\)")
_BEGINS_LINE = re.compile(r"^[ \t]{0,9}(?:[-#>][ ])?([A-J])[.)](?=\s|$)", re.MULTILINE)


def find_choice(text: str) -> str | None:
    """Return the letter that a response settles on, as a capital; None where none can be told.

    In this order: the last that is stated ("the answer is (B)", "Answer: B", "B is correct", in a box), one alone on
    the last line, the last in brackets or in bold, the one that begins a line where no other letter begins one.
    """
    text = _COMMAND.sub(r"\1", text)
    text = _BOX.sub(lambda box: f" answer: ({box[1] or box[2] or box[3]}) ", text)
    text = _MARKUP.sub("", _BOLD.sub(r"(\1)", text))
    stated = [found for pattern in (_STATED, _IS_CORRECT) for found in pattern.finditer(text)]
    if stated:
        last = max(stated, key=lambda found: found.end())
        return str(next(filter(None, last.groupdict().values()))).upper()
    alone = _ALONE.fullmatch(text.rstrip().rpartition("\n")[2].strip())
    if alone is not None:
        return alone[1].upper()
    in_brackets = _IN_BRACKETS.findall(text)
    if in_brackets:
        return str(in_brackets[-1]).upper()
    beginning = set(_BEGINS_LINE.findall(text))
    return str(beginning.pop()) if len(beginning) == 1 else None
