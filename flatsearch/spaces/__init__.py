"""What may be searched."""
