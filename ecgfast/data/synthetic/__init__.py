"""Records that a model of the heart makes; imports `signal` and `store`."""
