"""Any images that a table describes."""
