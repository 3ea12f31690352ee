"""MVTec AD."""
