"""Stand-in for `fla.modules`."""
