"""What a PromQL expression asks for: its metrics, each with its matchers, and the labels that it groups by.

A tokeniser and no parser: it is `promtool` that knows whether an expression is right. An identifier is a metric unless
it is a keyword, an aggregation, or followed by a bracket (a function); what stands in braces, or behind ``by`` and its
like, are labels. Names with colons (recording rules) are none of ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

TOKEN = re.compile(
    r"""(?P<space>\s+|\#[^\n]*)
      | (?P<string>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|`[^`]*`)
      | (?P<duration>\d+(?:ms|[smhdwy])(?:\d+(?:ms|[smhdwy]))*\b|\$__rate_interval|\$__interval)
      | (?P<number>\d+\.?\d*(?:[eE][+-]?\d+)?)
      | (?P<name>[A-Za-z_][A-Za-z0-9_]*)
      | (?P<symbol>=~|!~|!=|==|>=|<=|[-+*/%^=<>(){}\[\],:@])""",
    re.VERBOSE,
)
GROUPING = {"by", "without", "on", "ignoring", "group_left", "group_right"}
OPERATORS = {"and", "or", "unless", "offset", "bool", "inf", "nan", "atan2"}
AGGREGATIONS = {"sum", "min", "max", "avg", "count", "group", "quantile", "topk", "bottomk", "stddev", "stdvar"}


@dataclass(frozen=True)
class Matcher:
    label: str
    operator: str
    value: str

    def fits(self, value: str) -> bool:
        if self.operator in ("=", "!="):
            return (value == self.value) == (self.operator == "=")
        return bool(re.fullmatch(self.value, value)) == (self.operator == "=~")


@dataclass
class Selector:
    """A metric and what is asked of its labels."""

    metric: str
    matchers: list[Matcher] = field(default_factory=list)

    def selects(self, name: str, labels: dict[str, str]) -> bool:
        return name == self.metric and all(matcher.fits(labels.get(matcher.label, "")) for matcher in self.matchers)


@dataclass
class Expression:
    selectors: list[Selector] = field(default_factory=list)
    grouped_by: set[str] = field(default_factory=set)


def tokens(text: str) -> list[tuple[str, str]]:
    """(kind, text) without spaces and comments. Raises ValueError for what is no PromQL."""
    found, at = [], 0
    while at < len(text):
        match = TOKEN.match(text, at)
        if match is None:
            raise ValueError(f"no PromQL from {text[at : at + 30]!r} on, in {text!r}")
        if match.lastgroup != "space":
            found.append((match.lastgroup or "", match.group()))
        at = match.end()
    return found


def read(text: str) -> Expression:
    expression, rest = Expression(), iter(tokens(text))
    ahead = next(rest, None)
    while ahead is not None:
        (kind, word), ahead = ahead, next(rest, None)
        if kind == "symbol" and word == "{":
            raise ValueError(f"braces without a metric before them, in {text!r}")
        if kind != "name" or word in OPERATORS or word in AGGREGATIONS:
            continue
        if word in GROUPING:
            if ahead == ("symbol", "("):
                expression.grouped_by |= {name for kind, name in _until(rest, ")") if kind == "name"}
                ahead = next(rest, None)
        elif ahead != ("symbol", "("):
            matchers = []
            if ahead == ("symbol", "{"):
                matchers = _matchers(list(_until(rest, "}")))
                ahead = next(rest, None)
            expression.selectors.append(Selector(word, matchers))
    return expression


def _until(rest: Iterator[tuple[str, str]], end: str) -> Iterator[tuple[str, str]]:
    for token in rest:
        if token == ("symbol", end):
            return
        yield token
    raise ValueError(f"no {end} comes")


def _matchers(inside: list[tuple[str, str]]) -> list[Matcher]:
    parts = [token for token in inside if token != ("symbol", ",")]
    if len(parts) % 3:
        raise ValueError(f"no matchers: {inside}")
    return [Matcher(parts[i][1], parts[i + 1][1], parts[i + 2][1][1:-1]) for i in range(0, len(parts), 3)]
