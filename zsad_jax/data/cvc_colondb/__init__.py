"""CVC-ColonDB."""
