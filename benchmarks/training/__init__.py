"""The whole training step, with the ops in ecgfast's, the official and the tuned variant."""
