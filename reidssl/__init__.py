"""Person re-identification and its self-supervised pre-training: models, objectives, data, metrics.

This package does not depend on clusters: it never imports Ray, DeepSpeed or Hydra. `platform` runs it on them.
"""
