"""What the wheel holds; everything else is in pyproject.toml.

The programs cannot be installed as `platform`: there, the standard library's module wins. They lie in a folder of their own
beside the library, from which the command `reidssl <program>` runs them (reidssl/command.py).
"""

from setuptools import find_packages, setup

PROGRAMS = "reidssl_programs"
programs = [f"{PROGRAMS}.{name}" for name in find_packages(include=["platform", "platform.*"])]
configs = [f"{PROGRAMS}.configs"]

setup(
    packages=find_packages(include=["reidssl", "reidssl.*"]) + programs + configs,
    package_dir={f"{PROGRAMS}.platform": "platform", f"{PROGRAMS}.configs": "configs"},
    package_data={
        "reidssl": ["py.typed"],
        f"{PROGRAMS}.platform.engine.report": ["*.j2"],
        f"{PROGRAMS}.configs": ["*.yaml", "*/*.yaml"],
    },
)
