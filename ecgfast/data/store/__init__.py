"""Stores on the disk: written, opened, summed up; imports `signal`."""
