"""The paper's comparison: objectives against each other on downstream tasks, by lead set and seed."""
