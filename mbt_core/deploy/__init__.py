"""A trained model in production: exported files and an HTTP service."""
