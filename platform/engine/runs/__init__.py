"""A run is a folder: configuration, records, metrics, trackers."""
