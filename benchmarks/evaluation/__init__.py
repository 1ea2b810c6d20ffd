"""Benchmarks of what is done with trained encoders."""
