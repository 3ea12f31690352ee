"""BrainMRI."""
