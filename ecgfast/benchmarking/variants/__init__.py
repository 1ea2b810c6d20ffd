"""Other people's variants of the ops: the official one, and the best tuned PyTorch that we could write."""
