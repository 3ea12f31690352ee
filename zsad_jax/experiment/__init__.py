"""One run, from a checked config to results on disk; sweeps over runs and reports on them."""
