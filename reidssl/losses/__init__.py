"""Losses of fine-tuning."""
