"""THE extractor: one definition of "the final answer", for verifying, recycling and evaluating."""

import re

_TOKEN = re.compile(r"(?P<box>\\+boxed\s*\{)|\\.|(?P<open>\{)|(?P<close>\})", re.DOTALL)


def boxed(text: str) -> str | None:
    r"""Content of the last complete ``\boxed{...}``, stripped; ``None`` if there is none.

    Braces must balance (``\{`` and ``\}`` do not count), so a box cut off by the token limit is not
    complete and an earlier one is taken. "Last" is by where the box opens: of nested boxes it is the
    inner one. The time is linear in the text, also for thousands of boxes that never close.
    """
    open_braces: list[int | None] = []  # where the content starts, if the brace opens a box
    last: tuple[int, int] | None = None
    for token in _TOKEN.finditer(text):
        if token["box"]:
            open_braces.append(token.end())
        elif token["open"]:
            open_braces.append(None)
        elif token["close"] and open_braces:
            start = open_braces.pop()
            if start is not None and (last is None or start > last[0]):
                last = (start, token.start())
    return None if last is None else text[last[0] : last[1]].strip()
