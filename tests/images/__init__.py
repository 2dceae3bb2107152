"""Images as they are released."""
