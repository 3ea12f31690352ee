"""Any folder laid out like MVTec AD."""
