"""What the samples of a store are: 500 a second, and one unit of an int16 sample is one microvolt."""

SAMPLE_RATE = 500
"""Samples per second of every recording in a store."""

UNITS_PER_MILLIVOLT = 1000

MILLIVOLTS_PER_UNIT = 1 / UNITS_PER_MILLIVOLT
