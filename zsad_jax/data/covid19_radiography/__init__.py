"""COVID-19 radiography."""
