"""What the samples of a store are: 500 a second, and one unit is one microvolt."""

SAMPLE_RATE = 500
"""Samples per second of every recording in a store."""

UNITS_PER_MILLIVOLT = 1000
"""Of a store's int16 samples."""

MILLIVOLTS_PER_UNIT = 1 / UNITS_PER_MILLIVOLT

LARGEST_UNIT = 32767
"""A sample that is not less than this, in microvolts, is out of a store's range."""
