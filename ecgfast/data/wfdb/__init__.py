"""WFDB records read and checked; imports `signal`."""
