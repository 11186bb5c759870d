"""The folder of a run: configuration, records, metrics, trackers."""
