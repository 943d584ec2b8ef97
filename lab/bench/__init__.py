"""What an answer costs: `python -m lab.bench` measures CoF against the plain answer."""
