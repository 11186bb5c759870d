"""The one door to object storage and local folders."""
