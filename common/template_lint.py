r"""The rules of a template set. Each one is a way in which judge data went wrong before (docs/algorithm.md).

The parser reads ``\boxed{}``: a prompt that asks for ``\box{}`` makes obedience score 0. A placeholder
outside the closed lists is refused, so no prompt can ever show a gold answer. A set may name no marker
at all, when its model has learned the format; it must then do so in every template.
"""

from __future__ import annotations

import re
import string
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from common.templates import PairwiseTemplate, PointwiseTemplate, Template, TemplateSet

T = TypeVar("T", bound="Template")

MARKER: Final = "\\boxed{"
_WRONG_MARKER: Final = re.compile(r"\\box(?!ed\{)\w*|\\fbox")
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_CHOICE_LETTERS: Final = frozenset("abcdefghij")
_PLACEHOLDERS: Final[dict[str, tuple[frozenset[str], ...]]] = {
    "solve": (frozenset({"question"}),),
    "pointwise": (
        frozenset({"question", "answer"}),
        frozenset({"question", "answer", "positive", "negative"}),
    ),
    "pairwise": (frozenset({"question", "answer_a", "answer_b"}),),
    "reflect": (frozenset({"question", "answer"}), frozenset({"question", "response"})),
}


def lint(templates: TemplateSet) -> list[str]:
    """Everything wrong with a template set, one sentence each; empty when it is sound."""
    return [*_lint_ids(templates), *_lint_texts(templates), *_lint_verdicts(templates), *_lint_families(templates)]


def _lint_ids(templates: TemplateSet) -> Iterator[str]:
    for name, count in Counter(template.id for template in templates.templates).items():
        if count > 1:
            yield f"{count} templates have the id {name!r}; lineage needs unique ids"


def _lint_texts(templates: TemplateSet) -> Iterator[str]:
    asks = any(MARKER in template.text for template in templates.templates)
    for objective, template in _by_objective(templates):
        where = f"{objective} template {template.id!r}"
        if not string.Template(template.text).is_valid():
            yield f"{where} has a lone '$'; write '$$' for a dollar sign"
        elif template.placeholders not in _PLACEHOLDERS[objective]:
            allowed = " or ".join(_listed(names) for names in _PLACEHOLDERS[objective])
            yield f"{where} has placeholders {_listed(template.placeholders)}; it must have {allowed}"
        if _CONTROL.search(template.text):
            yield f"{where} has a control character; write texts in ''' ''', where a backslash is a backslash"
        if wrong := _WRONG_MARKER.search(template.text):
            yield f"{where} says {wrong.group()!r}, but the parser reads only \\boxed{{}}"
        if asks and MARKER not in template.text:
            yield f"{where} does not ask for \\boxed{{}}, as others of its set do"


def _lint_verdicts(templates: TemplateSet) -> Iterator[str]:
    judges: tuple[PointwiseTemplate | PairwiseTemplate, ...] = (*templates.pointwise, *templates.pairwise)
    for template in judges:
        first, second = template.verdicts
        if first.casefold() == second.casefold():
            yield f"template {template.id!r} has the verdicts {first!r} and {second!r}, which a parser may confuse"
        for word, placeholder in zip(template.verdicts, ("positive", "negative"), strict=True):
            named = f"{MARKER}{word}}}" in template.text or f"{MARKER}${placeholder}}}" in template.text
            if MARKER in template.text and not named:
                yield f"template {template.id!r} never names its verdict \\boxed{{{word}}}"
    for template in judges:
        # A set without a marker has a vocabulary of its own, in which no question has lettered options.
        letters_matter = MARKER in template.text or template in templates.pointwise
        for word in template.verdicts:
            if letters_matter and word.casefold() in _CHOICE_LETTERS:
                yield f"template {template.id!r}: verdict {word!r} is also a multiple-choice letter"


def _lint_families(templates: TemplateSet) -> Iterator[str]:
    for name, family in _families(templates.pointwise).items():
        if len({(template.verdicts, template.permuted) for template in family}) > 1:
            yield f"pointwise family {name!r} mixes verdict words; give each its own family"
        firsts = [template.text.find("$positive") < template.text.find("$negative") for template in family]
        if family[0].permuted and 2 * sum(firsts) != len(firsts):
            yield (
                f"pointwise family {name!r} names $positive first in {sum(firsts)} of {len(firsts)} templates; "
                "it must be half of them, or the position tells the class"
            )
    for name, reflections in _families(templates.reflect).items():
        if len({(template.neutral, template.shows_response) for template in reflections}) > 1:
            yield f"reflect family {name!r} mixes neutral, told-wrong, answer or response templates; split it"


def _by_objective(templates: TemplateSet) -> Iterator[tuple[str, Template]]:
    yield "solve", templates.solve
    yield from (("pointwise", template) for template in templates.pointwise)
    yield from (("pairwise", template) for template in templates.pairwise)
    yield from (("reflect", template) for template in templates.reflect)


def _families(templates: Sequence[T]) -> dict[str, list[T]]:
    families: defaultdict[str, list[T]] = defaultdict(list)
    for template in templates:
        families[template.family].append(template)
    return families


def _listed(names: frozenset[str]) -> str:
    return " ".join(f"${name}" for name in sorted(names)) or "none"
