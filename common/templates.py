"""Template sets: the prompts of all objectives as data (TOML), so that a run can bring its own.

A text is filled in one pass with ``$name`` placeholders: an answer that contains ``$question``, braces
or ``\\boxed{}`` is shown byte for byte and never substituted again. Write ``$$`` for a dollar sign.
``common/template_lint.py`` holds the rules a set must keep; ``load_templates`` enforces them.
"""

from __future__ import annotations

import hashlib
import string
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import ConfigDict, StringConstraints, TypeAdapter, ValidationError

from common.errors import SettingsError
from common.settings import CONFIGS
from common.template_lint import lint as lint

TEMPLATE_SETS: Final = CONFIGS / "templates"
CLOSED: Final = ConfigDict(extra="forbid")
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Word = Annotated[str, StringConstraints(pattern=r"^[^\s\\{}$]+$")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """One prompt. ``family`` groups templates among which classes are balanced."""

    __pydantic_config__ = CLOSED
    id: Name
    text: Text
    family: Name

    @property
    def placeholders(self) -> frozenset[str]:
        return frozenset(string.Template(self.text).get_identifiers())

    def fill(self, **values: str) -> str:
        return string.Template(self.text).substitute(values)


@dataclass(frozen=True, slots=True, kw_only=True)
class SolveTemplate(Template):
    __pydantic_config__ = CLOSED
    family: Name = "solve"

    def render(self, question: str) -> str:
        return self.fill(question=question)


@dataclass(frozen=True, slots=True, kw_only=True)
class PointwiseTemplate(Template):
    """Is this answer right? ``verdicts`` are (right, wrong).

    A text that uses ``$positive`` and ``$negative`` has verdicts without a meaning of their own (letters):
    ``swapped`` exchanges them, so that neither predicts the class.
    """

    __pydantic_config__ = CLOSED
    verdicts: tuple[Word, Word]

    @property
    def permuted(self) -> bool:
        return "positive" in self.placeholders

    def words(self, swapped: bool = False) -> tuple[str, str]:
        """(verdict of a right answer, verdict of a wrong one)."""
        positive, negative = self.verdicts
        return (negative, positive) if swapped else (positive, negative)

    def render(self, question: str, answer: str, *, swapped: bool = False) -> str:
        if swapped and not self.permuted:
            raise ValueError(f"template {self.id!r} has fixed verdict words; they cannot be swapped")
        positive, negative = self.words(swapped)
        return self.fill(question=question, answer=answer, positive=positive, negative=negative)


@dataclass(frozen=True, slots=True, kw_only=True)
class PairwiseTemplate(Template):
    """Which of two answers is right? ``verdicts`` are (the first shown, the second shown)."""

    __pydantic_config__ = CLOSED
    verdicts: tuple[Word, Word] = ("A", "B")

    def render(self, question: str, answer_a: str, answer_b: str) -> str:
        return self.fill(question=question, answer_a=answer_a, answer_b=answer_b)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReflectTemplate(Template):
    """Check an earlier answer and give the right one. ``neutral = false`` tells that the answer is wrong."""

    __pydantic_config__ = CLOSED
    neutral: bool = True

    @property
    def shows_response(self) -> bool:
        """The whole earlier response is shown, not only its extracted answer."""
        return "response" in self.placeholders

    def render(self, question: str, *, answer: str, response: str) -> str:
        return self.fill(question=question, answer=answer, response=response)


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateSet:
    __pydantic_config__ = CLOSED
    name: Name
    solve: SolveTemplate
    pointwise: tuple[PointwiseTemplate, ...] = ()
    pairwise: tuple[PairwiseTemplate, ...] = ()
    reflect: tuple[ReflectTemplate, ...] = ()

    @property
    def templates(self) -> tuple[Template, ...]:
        return (self.solve, *self.pointwise, *self.pairwise, *self.reflect)

    def ref(self, template: Template) -> str:
        """``set/id@hash8`` for lineage; the hash covers every byte that the model can see."""
        seen = "\x1f".join((template.text, *getattr(template, "verdicts", ())))
        return f"{self.name}/{template.id}@{hashlib.blake2b(seen.encode(), digest_size=4).hexdigest()}"


_adapter: Final = TypeAdapter(TemplateSet)


def load_templates(path_or_name: str | Path) -> TemplateSet:
    """Read and lint a template set: a name in configs/templates/, or a TOML file.

    Raises SettingsError that names the file, the template and the reason.
    """
    path = _locate(path_or_name)
    templates = _parse(path)
    problems = lint(templates)
    if problems:
        raise SettingsError(f"template set {path}: " + "; ".join(problems))
    return templates


def _locate(path_or_name: str | Path) -> Path:
    named = TEMPLATE_SETS / f"{path_or_name}.toml"
    path = named if named.is_file() else Path(path_or_name)
    if not path.is_file():
        known = ", ".join(sorted(path.stem for path in TEMPLATE_SETS.glob("*.toml")))
        raise SettingsError(f"template set {str(path_or_name)!r} is neither a TOML file nor one of: {known}")
    return path


def _parse(path: Path) -> TemplateSet:
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise SettingsError(
            f"template set {path} cannot be read: {error}. Write texts in ''' ''', where a backslash is a backslash"
        ) from None
    try:
        return _adapter.validate_python(tables)
    except ValidationError as error:
        # A misspelt key first: it also makes the right one missing.
        first = min(error.errors(), key=lambda found: found["type"] != "unexpected_keyword_argument")
        raise SettingsError(f"template set {path}, {_name(tables, first['loc'])}: {first['msg']}") from None


def _name(tables: dict[str, Any], loc: tuple[int | str, ...]) -> str:
    """``pointwise.1.text`` of a validation error, with the template's id where it has one."""
    table: Any = tables
    for part in loc[:2]:
        known = part in table if isinstance(table, dict) else isinstance(part, int) and isinstance(table, list)
        table = table[part] if known else {}
    where = ".".join(str(part) for part in loc)
    return f"template {table['id']!r} ({where})" if isinstance(table, dict) and "id" in table else f"key {where}"
