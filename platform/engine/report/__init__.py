"""What the report page is made of: reading a run folder, charts, tables, pictures."""
