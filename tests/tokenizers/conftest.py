"""`make test-tokenizers` says where the packages are kept; without it nothing here is run."""

from __future__ import annotations

import os

collect_ignore = [] if os.environ.get("COF_TOKENIZERS") else ["test_tokenizers.py"]
