"""EndoTect 2020, segmentation test."""
