"""Makes matplotlib's SVG fit to stand inside a page: no metadata, no clashing ids, the page's fonts and colours."""

from __future__ import annotations

import re
from typing import Final
from xml.etree import ElementTree

from cli.report.palette import PALETTE

SVG: Final = "http://www.w3.org/2000/svg"
XLINK: Final = "http://www.w3.org/1999/xlink"
_DROPPED: Final = (f"{{{SVG}}}metadata", f"{{{SVG}}}style")  # its style element would apply to the whole page
_HREF: Final = f"{{{XLINK}}}href"
_URL: Final = re.compile(r"url\(#([^)]+)\)")
_FONT_FAMILY: Final = re.compile(r"font-family: [^;]*;? ?")
_DECIMALS: Final = re.compile(r"(\.\d\d)\d+")
_VARIABLES: Final = {light: f"var(--{name})" for name, (light, _) in PALETTE.items()}
_COLOUR: Final = re.compile("|".join(_VARIABLES))


def inline(document: str, label: str) -> str:
    """The drawing as one ``<svg>`` element that scales with its column; ``label`` is read out in its place."""
    root = ElementTree.fromstring(document)
    for parent in list(root.iter()):
        for child in [child for child in parent if child.tag in _DROPPED]:
            parent.remove(child)
    referenced = set(_references(root))
    for element in root.iter():
        _tidy(element, referenced)
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": label}
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    return ElementTree.tostring(root, encoding="unicode")


def _references(root: ElementTree.Element) -> list[str]:
    """The ids that are pointed at; all others would only clash with those of the next plot."""
    values = [value for element in root.iter() for value in element.attrib.values()]
    links = [element.attrib[_HREF].removeprefix("#") for element in root.iter() if _HREF in element.attrib]
    return links + [name for value in values for name in _URL.findall(value)]


def _tidy(element: ElementTree.Element, referenced: set[str]) -> None:
    element.text = element.text.strip() if element.text else None
    element.tail = None
    if element.attrib.get("id") not in referenced:
        element.attrib.pop("id", None)
    for name in ("d", "x", "y", "transform"):
        if name in element.attrib:
            element.attrib[name] = _DECIMALS.sub(r"\1", " ".join(element.attrib[name].split()))
    if "style" in element.attrib:
        style = _FONT_FAMILY.sub("", element.attrib["style"])
        element.attrib["style"] = _COLOUR.sub(lambda match: _VARIABLES[match[0]], style)
