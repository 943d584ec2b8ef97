"""What makes our own evidence: training, studies, benchmarks of speed. See README.md."""
