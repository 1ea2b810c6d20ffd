"""Other people's forms of the ops: the official one, and the best tuned PyTorch that we could write."""
