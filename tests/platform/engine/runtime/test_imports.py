"""Lean imports: heavy libraries import without their optional dependencies, which stay importable afterwards."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[4]
PROGRAM = """
import sys
from platform.engine.runtime.imports import import_engine
import_engine()
assert "timm.models.vision_transformer" in sys.modules and "deepspeed" in sys.modules
import os
from platform.engine.runtime.device import keep_compiled_code
from torch._inductor.runtime.cache_dir_utils import cache_dir
keep_compiled_code()
assert cache_dir() == os.path.join(os.environ["XDG_CACHE_HOME"], "reidssl", "inductor"), cache_dir()
os.environ["TORCHINDUCTOR_CACHE_DIR"] = "/given"
keep_compiled_code()
assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "/given"
assert "mlflow" not in sys.modules and "torchvision.models.feature_extraction" not in sys.modules
from reidssl.models.model_config import VitConfig
from reidssl.models.vit import build_vit
build_vit(VitConfig(width=16, depth=1, heads=2, image_size=(32, 32), stem_width=8))
import torchvision.models.feature_extraction
print("well")
"""


def test_the_lean_import_is_enough(tmp_path):
    """And compiled code still goes to the user's folder, although the import sets another."""
    environment = {name: value for name, value in os.environ.items() if name != "TORCHINDUCTOR_CACHE_DIR"}
    environment["XDG_CACHE_HOME"] = str(tmp_path)
    program = [sys.executable, "-c", PROGRAM]
    ended = subprocess.run(program, cwd=ROOT, env=environment, text=True, capture_output=True, timeout=200)
    assert ended.returncode == 0 and ended.stdout.strip().endswith("well"), ended.stderr[-3000:]
