"""Answers as HTML."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from cof.viz.page import webp_url

if TYPE_CHECKING:
    from cof.pipeline import Answer
    from cof.viz.page import Panel
    from cof.web.session import Shown


SCALE = '<div class="cof-scale" aria-hidden="true"></div>'
LONG = 40  # characters of an answer that is set in small letters


def render(shown: Shown) -> str:
    """The answers side by side, and below them what each looked at.

    Images are data URIs, so that nobody else can fetch them.
    """
    cards = [_card("Plain model", shown.plain, "")]
    parts: list[str] = []
    for answer, panels in zip(shown.answers, shown.panels, strict=True):
        how = describe(answer)
        who = "CoF, second" if parts else "CoF"
        cards.append(_card(who, answer.text, how, answer.reason))
        heading = f'<p class="cof-setting">{escape(how)}</p>' if len(shown.answers) > 1 else ""
        figures = "".join(_figure(panel) for panel in panels)
        wide = panels[0].image.width / panels[0].image.height
        parts.append(f'{heading}<div class="cof-panels" style="--wide: {wide:.2f}">{figures}</div>')
    notes = "".join(f'<p class="cof-note">{escape(note)}</p>' for note in shown.notes)
    answers = f'<div class="cof-answers" aria-live="polite">{"".join(cards)}</div>'
    return "".join([answers, notes, *parts])


def render_message(text: str, *, error: bool = False) -> str:
    """A sentence for the visitor."""
    role = "alert" if error else "status"
    return f'<p class="cof-message cof-{role}" role="{role}">{escape(text)}</p>'


def describe(answer: Answer) -> str:
    """How an answer came about, in a line."""
    settings = answer.settings
    name = settings.grounder_name
    words = "your region" if name == "given" else f"{name} grounder"
    if len(settings.grounders) > 1:
        words += f" (kept: {answer.grounder})"
    parts = [words, f"{settings.focus.name} focus"]
    if (strength := settings.option("strength")) is not None:
        parts.append(f"λ\u00a0{strength:g}")
    parts.append(f"α\u00a0{settings.expand:g}")
    if answer.confidence is not None and answer.region is not None:
        parts.append(f"confidence {answer.confidence:.0%}")
    return " · ".join(parts)


def _card(who: str, text: str, how: str, reason: str = "") -> str:
    notes = "".join(f'<p class="cof-note">{escape(note)}</p>' for note in (how, reason) if note)
    style = "cof-text cof-long" if len(text) > LONG else "cof-text"
    return (
        f'<section class="cof-answer"><h2>{escape(who)}</h2>'
        f'<p class="{style}">{escape(text) or "(nothing)"}</p>{notes}</section>'
    )


def _figure(panel: Panel) -> str:
    width, height = panel.image.size
    alt = escape(f"{panel.title}. {panel.caption}", quote=True)
    return (
        f"<figure><figcaption>{escape(panel.title)}</figcaption>"
        f'<img src="{webp_url(panel.image)}" width="{width}" height="{height}" alt="{alt}">'
        f'<div class="cof-legend">{SCALE if panel.top else ""}'
        f'<p class="cof-note">{escape(panel.caption)}</p></div></figure>'
    )
