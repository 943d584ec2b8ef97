"""Where to look: a grounder turns questions about images into regions (stage 1 of the paper).

To add one: a file with a frozen dataclass (`cof.grounders.base.Grounder`), and a line in
`GROUNDERS`.
"""

from __future__ import annotations

from cof.grounders.attention import AttentionGrounder
from cof.grounders.base import Grounder
from cof.grounders.detector import DetectorGrounder
from cof.grounders.given import GivenGrounder, NoneGrounder, WholeGrounder
from cof.grounders.logits import LogitsGrounder
from cof.grounders.prompt import PromptGrounder
from cof.grounders.relevance import RelevanceGrounder

__all__ = [
    "GROUNDERS",
    "AttentionGrounder",
    "DetectorGrounder",
    "GivenGrounder",
    "Grounder",
    "LogitsGrounder",
    "NoneGrounder",
    "PromptGrounder",
    "RelevanceGrounder",
    "WholeGrounder",
]

GROUNDERS: dict[str, type[Grounder]] = {
    "prompt": PromptGrounder,
    "attention": AttentionGrounder,
    "relevance": RelevanceGrounder,
    "logits": LogitsGrounder,
    "detector": DetectorGrounder,
    "given": GivenGrounder,
    "whole": WholeGrounder,
    "none": NoneGrounder,
}
