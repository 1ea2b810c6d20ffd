"""Signals in memory: filters, resampling, repairs, what of it a store takes; imports no other room."""
