"""Which segments of a store make which batch, and how they get there; imports `store`."""
