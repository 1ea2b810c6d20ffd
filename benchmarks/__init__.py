"""Benchmarks of ecgfast's ops against other variants of the same computation; see README.md."""
