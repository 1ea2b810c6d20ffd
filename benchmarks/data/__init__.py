"""Benchmarks of importing and of feeding a training."""
