"""From a matplotlib figure to an SVG element that lives inside an HTML page."""

from __future__ import annotations

import io
import re
from functools import lru_cache
from importlib.resources import files

from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from mars_core.report.figures.style import CSS_NAMES

PIXELS_PER_POINT = 1.4  # a figure is shown at most this large, so that text has one size on the whole page
_RC = {"svg.fonttype": "none", "svg.hashsalt": "mars", "font.family": "DejaVu Sans"}


def inline_svg(figure: Figure, name: str, description: str) -> Markup:
    """Draw `figure` as an inline `<svg>` with text as text, page colours and ids of its own.

    Args:
        figure: what to draw.
        name: prefix of the ids, unique on the page.
        description: what the picture shows, for readers who do not see it.
    """
    buffer = io.StringIO()
    with rc_context(_RC):
        FigureCanvasSVG(figure).print_svg(
            buffer, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    figure.set_layout_engine("none")  # it is laid out: drawn again, it need not be, which takes as long as drawing
    document = buffer.getvalue()
    box = _view_box(document)
    width = float(box.split()[2]) * PIXELS_PER_POINT
    opening = (
        f'<svg class="plot" role="img" aria-label="{escape(description)}" viewBox="{box}" '
        f'style="max-width: {width:.0f}px">'
    )
    return Markup(opening + _own_ids(_page_colours(_element(document)), name) + "</svg>")


def standalone_svg(figure: Figure) -> str:
    """Draw `figure` as an SVG document of its own, in the page's light colours on white, text as outlines."""
    buffer = io.StringIO()
    with rc_context({**_RC, "svg.fonttype": "path"}):
        FigureCanvasSVG(figure)
        figure.savefig(buffer, format="svg", facecolor="white", metadata={"Date": None})
    document = buffer.getvalue()
    for placeholder, colour in _light_colours().items():
        document = document.replace(placeholder, colour)
    return document


@lru_cache(maxsize=1)
def _light_colours() -> dict[str, str]:
    """The placeholders' colours on a light page, from the page's style sheet."""
    css = files("mars_core.report").joinpath("report.css").read_text(encoding="utf-8").partition("@media")[0]
    colours = {f"var({name})": value for name, value in re.findall(r"(--[a-z0-9-]+): (#[0-9a-f]{6})", css)}
    colours["currentColor"] = colours["var(--ink)"]
    return {placeholder: colours[name] for placeholder, name in CSS_NAMES.items()}


def _element(document: str) -> str:
    """What stands between <svg ...> and </svg>, without style sheet, metadata and namespaces."""
    inner = re.search(r"<svg[^>]*>(.*)</svg>", document, re.DOTALL)
    if inner is None:
        raise ValueError("the SVG backend wrote no <svg> element")
    kept = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->", "", inner.group(1), flags=re.DOTALL)
    return re.sub(r"\n\s*", "\n", kept).replace("xlink:href", "href").strip()


def _view_box(document: str) -> str:
    found = re.search(r'viewBox="([^"]+)"', document)
    if found is None:
        raise ValueError("the SVG backend wrote no viewBox")
    return found.group(1)


def _page_colours(body: str) -> str:
    for colour, css in CSS_NAMES.items():
        body = body.replace(colour, css)
    body = re.sub(r" ?font-family: [^;\"]*;?", "", body)  # the page's own
    return re.sub(r"font: (?:(?:bold|italic) )*([\d.]+)px [^;\"]*", _font, body)


def _font(match: re.Match[str]) -> str:
    weight = "font-weight: 600; " if "bold" in match.group(0) else ""
    slant = "font-style: italic; " if "italic" in match.group(0) else ""
    return f"{weight}{slant}font-size: {match.group(1)}px"


def _own_ids(body: str, name: str) -> str:
    """Keep the ids that something refers to, under a prefix; drop the others."""
    used = set(re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', body))
    kept = {first or second for first, second in used}
    body = re.sub(r' id="([^"]+)"', lambda m: f' id="{name}-{m.group(1)}"' if m.group(1) in kept else "", body)
    return body.replace("url(#", f"url(#{name}-").replace('href="#', f'href="#{name}-')
