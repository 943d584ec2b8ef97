"""How to make the model look there: a focus edits a request (stage 2 of the paper).

To add one: a file with a frozen dataclass (`cof.focuses.base.Focus`), and its place in `FOCUSES`.
"""

from __future__ import annotations

from cof.focuses.base import Attention as Attention
from cof.focuses.base import Contrast as Contrast
from cof.focuses.base import Focus as Focus
from cof.focuses.base import Soft as Soft
from cof.focuses.base import Unchanged as Unchanged
from cof.focuses.image import Beside as Beside
from cof.focuses.image import Crop as Crop
from cof.focuses.image import Overlay as Overlay

FOCUSES: dict[str, type[Focus]] = {
    each.name: each for each in (Attention, Soft, Contrast, Crop, Beside, Overlay, Unchanged)
}
