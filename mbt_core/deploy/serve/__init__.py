"""An HTTP service that classifies uploaded media files."""
