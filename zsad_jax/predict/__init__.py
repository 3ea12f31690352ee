"""Images without labels: the detector, thresholds, overlays, folders of images, export."""
