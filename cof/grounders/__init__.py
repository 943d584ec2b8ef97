"""Where to look: a grounder turns questions about images into regions (stage 1 of the paper).

To add one: a file with a frozen dataclass (`cof.grounders.base.Grounder`), and its place in
`GROUNDERS`.
"""

from __future__ import annotations

from cof.grounders.base import Given as Given
from cof.grounders.base import Grounder as Grounder
from cof.grounders.base import Nowhere as Nowhere
from cof.grounders.base import Whole as Whole
from cof.grounders.detector import Detector as Detector
from cof.grounders.maps import Logits as Logits
from cof.grounders.maps import RelativeAttention as RelativeAttention
from cof.grounders.maps import Relevance as Relevance
from cof.grounders.prompt import Prompt as Prompt

GROUNDERS: dict[str, type[Grounder]] = {
    each.name: each
    for each in (Prompt, RelativeAttention, Relevance, Logits, Detector, Given, Whole, Nowhere)
}
