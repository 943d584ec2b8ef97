"""How the embedded models are trained: `make tiny`."""
