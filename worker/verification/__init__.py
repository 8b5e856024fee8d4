"""Checks of written checkpoints by other means than those that wrote them: other readers, and the models themselves."""
