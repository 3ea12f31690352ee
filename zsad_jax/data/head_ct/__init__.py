"""HeadCT."""
