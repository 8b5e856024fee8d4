"""One page per family."""
