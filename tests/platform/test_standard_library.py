"""The package `platform` also provides the standard library's module, in every process of the programs."""

import ast
import json
import subprocess
import sys
from pathlib import Path

from platform.__main__ import programs

ROOT = Path(__file__).resolve().parents[2]

NAMES = """
import json, sys, sysconfig
{path}
import platform
public = [name for name in dir(platform) if not name.startswith("_")]
calls = {{}}
for name in public:
    value = getattr(platform, name)
    if callable(value) and name not in ("main", "popen", "DEV_NULL"):
        try:
            calls[name] = repr(value())
        except TypeError:
            calls[name] = "needs arguments"
        except Exception as error:
            calls[name] = type(error).__name__
calls["uname.processor"] = platform.uname().processor
calls["terse"] = platform.platform(aliased=True, terse=True)
print(json.dumps({{"public": public, "calls": calls, "programs": hasattr(platform, "__path__"), "doc": bool(platform.__doc__)}}))
"""


def python(code: str, cwd: Path = ROOT) -> str:
    ended = subprocess.run([sys.executable, "-c", code], cwd=cwd, text=True, capture_output=True, timeout=200)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return ended.stdout


def test_every_name_of_the_standard_module_is_there_and_answers_the_same(tmp_path):
    here = json.loads(python(NAMES.format(path="")))
    standard = json.loads(python(NAMES.format(path="sys.path = [p for p in sys.path if p]"), cwd=tmp_path))
    assert here["programs"] and not standard["programs"]
    assert set(standard["public"]) <= set(here["public"])
    assert {name: here["calls"][name] for name in standard["calls"]} == standard["calls"]
    assert {"system", "machine", "python_version", "uname", "platform", "freedesktop_os_release"} <= set(here["calls"])


def test_what_imports_the_standard_module_works_from_the_root():
    """Tested with the folder first and last in the search order."""
    late = "import uuid, ray, torch, deepspeed, platform; assert platform.system() and platform.__path__"
    assert python(f"{late}; import platform.engine.errors; print('fine')").strip().endswith("fine")
    first = "import platform.engine.errors; import uuid, platform; assert uuid.uuid4() and platform.node()"
    assert python(f"{first}; print('fine')") == "fine\n"


def test_tasks_and_actors_import_programs(ray_session):
    ray = ray_session

    @ray.remote(num_cpus=0.1)
    def task():
        import platform.select

        return platform.select.__name__, platform.system()

    @ray.remote(num_cpus=0.1)
    class Actor:
        def ask(self):
            from platform.score import main

            return main.__module__

    import platform

    assert ray.get(task.remote()) == ("platform.select", platform.system())
    assert ray.get(Actor.remote().ask.remote()) == "platform.score"


def test_train_workers_import_programs(tmp_path, ray_session):
    from platform.engine.storage.location import open_storage
    from platform.engine.train.launch import launch
    from platform.engine.train.scaling import ScalingConfig

    def loop(arguments):
        import platform
        from platform.select import main

        with open(arguments["file"], "w") as file:
            file.write(f"{main.__module__} {platform.python_version()}")

    launch(
        loop,
        {"file": str(tmp_path / "said")},
        storage=open_storage(str(tmp_path)),
        scaling=ScalingConfig(threads=1),
    )
    assert (tmp_path / "said").read_text() == "platform.select " + ".".join(map(str, sys.version_info[:3]))


# ---- the programs


def test_the_table_of_programs():
    ended = subprocess.run([sys.executable, "-m", "platform"], cwd=ROOT, text=True, capture_output=True, timeout=60)
    assert ended.returncode == 0 and ended.stderr == ""
    for name, summary in programs().items():
        assert f"python -m platform.{name}" in ended.stdout and summary in ended.stdout and summary
    assert {"ingest", "pretrain", "score", "select", "finetune"} <= programs().keys()


def test_help_as_a_command():
    ended = subprocess.run(
        [sys.executable, "-m", "platform.select", "--help"], cwd=ROOT, text=True, capture_output=True, timeout=200
    )
    assert ended.returncode == 0 and "fraction=" in ended.stdout and "Traceback" not in ended.stderr


# ---- imports between the packages


def test_the_library_imports_neither_cluster_nor_programs():
    forbidden = {"ray", "deepspeed", "hydra", "omegaconf", "platform"}
    files = sorted((ROOT / "reidssl").rglob("*.py"))
    assert len(files) > 20
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            imported = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                imported = [node.module or ""]
            for name in imported:
                assert name.partition(".")[0] not in forbidden, f"{path.relative_to(ROOT)} imports {name}"
