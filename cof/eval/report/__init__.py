"""Reports of runs: tables, charts, one HTML page."""
