"""The parts of the report page: reading a run folder, charts, tables, pictures."""
