"""Decoding with torch.compile: one graph for every token, on a cache that stays where it is."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import CompileConfig, StaticCache
from transformers.cache_utils import StaticLayer, StaticSlidingWindowLayer

STEP = 512
"""Tokens by which the cache grows: a longer one is another graph."""


class Compiled:
    """What compiled decoding keeps between calls.

    Regions, lambdas and boxes are contents of the mask, so they lead to no new graph; another
    number of rows or a longer cache does, and so does the first answer with a bias.

    Attributes:
        config: transformers' own, with the device's consent.
    """

    def __init__(self, model: Any, config: CompileConfig | None = None) -> None:
        """
        Args:
            model: its generator.
            config: how it is compiled; None: as transformers does by default.
        """
        self.config = config or CompileConfig()
        self.config._compile_all_devices = True  # type: ignore[assignment]  # None by default
        self._text = model.config.get_text_config()
        self._cache: StaticCache | None = None
        self._shape = (0, 0)
        self._lock = threading.Lock()

    @contextmanager
    def cache(self, rows: int, tokens: int) -> Iterator[StaticCache]:
        """An empty cache for that many rows and tokens, until the `with` is left.

        It is one cache: threads that compile wait for one another."""
        with self._lock:
            if self._cache is None or self._shape[0] != rows or self._shape[1] < tokens:
                self._shape = (rows, max(self._shape[1], -(-tokens // STEP) * STEP))
                self._cache = self._made(self._shape[1])
            self._cache.reset()
            yield self._cache

    def _made(self, tokens: int) -> StaticCache:
        """A cache whose layers forget nothing: windows are left to the masks."""
        cache = StaticCache(config=self._text, max_cache_len=tokens)
        cache.layers = [
            StaticLayer(tokens) if type(layer) is StaticSlidingWindowLayer else layer
            for layer in cache.layers
        ]
        return cache
