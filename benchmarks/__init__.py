"""Benchmarks of ecgfast's ops against other forms of the same computation; see README.md."""
