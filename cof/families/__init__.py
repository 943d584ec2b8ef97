"""Model families as data: what differs between them, in one value each.

To add one, append it to `FAMILIES` (in `table`): its `model_type`, how the processor's pixels
become one mean for each image token (`token_means`), where the original lies in the frame of its
boxes, its dialect, and where the bias goes. `tests/test_families.py` then checks the
placement against the model's own features, `tests/test_matrix.py` the bias against the formula.
"""

from cof.families.table import FAMILIES, Family, dialect_of, family_of

__all__ = ["FAMILIES", "Family", "dialect_of", "family_of"]
