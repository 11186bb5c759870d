"""All access to object storage and local folders."""
