"""Run the application until a signal ends it."""

from __future__ import annotations

import uvicorn
from fastapi import FastAPI

from cof.server.logs import start_logging

CONNECTIONS = 512
"""The most at a time; beyond it uvicorn answers 503."""


def run(app: FastAPI, host: str, port: int) -> None:
    """Serve until SIGINT or SIGTERM, and then answer what was asked before."""
    start_logging()
    uvicorn.run(
        app,
        host=host,
        port=port,
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=60,
    )
