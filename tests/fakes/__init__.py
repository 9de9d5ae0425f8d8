"""What stands in for outside services."""
