"""The cases of `ecgfast bench` under pytest-benchmark: `pytest benchmarks/ops --benchmark-only`."""
