"""Augmentation of whole batches of uint8 images on the device they are on, reproducible sample by sample."""
