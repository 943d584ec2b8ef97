"""Where to look: a grounder turns questions about images into regions (stage 1 of the paper).

To add one: a file with a frozen dataclass (`cof.grounders.base.Grounder`), and its place in
`GROUNDERS`.
"""

from __future__ import annotations

from cof.grounders.attention import RelativeAttention
from cof.grounders.base import Grounder
from cof.grounders.detector import Detector
from cof.grounders.given import Given, Nowhere, Whole
from cof.grounders.objects import Logits, Relevance
from cof.grounders.prompt import Prompt

GROUNDERS: dict[str, type[Grounder]] = {
    each.name: each
    for each in (Prompt, RelativeAttention, Relevance, Logits, Detector, Given, Whole, Nowhere)
}

__all__ = [
    "GROUNDERS",
    "Detector",
    "Given",
    "Grounder",
    "Logits",
    "Nowhere",
    "Prompt",
    "RelativeAttention",
    "Relevance",
    "Whole",
]
