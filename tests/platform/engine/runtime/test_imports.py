"""Lean imports: heavy libraries import without their optional dependencies, which stay importable afterwards."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[4]
PROGRAM = """
import sys
from platform.engine.runtime.imports import import_engine
import_engine()
assert "timm.models.vision_transformer" in sys.modules and "deepspeed" in sys.modules
assert "mlflow" not in sys.modules and "torchvision.models.feature_extraction" not in sys.modules
from reidssl.models.model_config import VitConfig
from reidssl.models.vit import build_vit
build_vit(VitConfig(width=16, depth=1, heads=2, image_size=(32, 32), stem_width=8))
import torchvision.models.feature_extraction
print("well")
"""


def test_the_lean_import_is_enough():
    ended = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, text=True, capture_output=True, timeout=200)
    assert ended.returncode == 0 and ended.stdout.strip().endswith("well"), ended.stderr[-3000:]
