from __future__ import annotations

import os
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"  # no test may reach for the network
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

# whatever the tests write, and the processes that they start, is gone when they have ended
ROOT = tempfile.TemporaryDirectory(prefix="cof-tests-", ignore_cleanup_errors=True)
os.environ["TMPDIR"] = tempfile.tempdir = ROOT.name

import torch  # noqa: E402

torch.set_num_threads(1)
