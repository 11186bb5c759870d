"""Person re-identification and its self-supervised pre-training: models, objectives, data, metrics.

This package knows nothing about clusters: it never imports Ray, DeepSpeed or Hydra. `platform` runs it on them.
"""
