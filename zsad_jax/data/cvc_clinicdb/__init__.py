"""CVC-ClinicDB."""
