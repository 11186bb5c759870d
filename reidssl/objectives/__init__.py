"""Self-supervised objectives, all with the interface of `reidssl.objectives.base`."""
