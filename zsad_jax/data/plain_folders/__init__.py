"""Any folders of normal and of anomalous images."""
