"""ColonDB with normal colon images."""
