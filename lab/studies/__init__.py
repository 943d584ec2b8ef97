"""What we measured on the scenes: `make eval`, `make effect`."""
