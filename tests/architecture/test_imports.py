"""Who may import whom, and what must stay light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
HEAVY = {"torch", "transformers", "megatron", "celery", "numpy"}


def loaded_by(*statements: str) -> set[str]:
    """Top-level names of the modules that a fresh interpreter has loaded afterwards."""
    code = "; ".join((*statements, "import sys; print(*{name.split('.')[0] for name in sys.modules})"))
    return set(subprocess.check_output([sys.executable, "-c", code], text=True, cwd=PROJECT).split())


def test_the_directions_between_rooms_hold() -> None:
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(cache_dir=None))"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PROJECT)

    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("module", ["api.app", "api.cli.commands", "api.client"])
def test_the_api_loads_nothing_heavy(module: str) -> None:
    assert loaded_by(f"import {module}").isdisjoint(HEAVY)


def test_import_and_export_load_neither_torch_nor_megatron() -> None:
    loaded = loaded_by("import worker.handlers.run", "import worker.local")

    assert loaded.isdisjoint({"torch", "transformers", "megatron", "celery", "redis"})


def test_celerys_side_loads_neither_torch_nor_megatron() -> None:
    loaded = loaded_by("import worker.dispatch.work", "import worker.dispatch.app")

    assert loaded.isdisjoint({"torch", "transformers", "megatron"})


def test_mapping_loads_nothing_but_the_vocabulary() -> None:
    loaded = loaded_by("import worker.mapping.registry", "import worker.mapping.model_config")

    assert loaded.isdisjoint({*HEAVY, "redis", "fastapi"})


def environment_readers() -> set[str]:
    """Files of the product that touch os.environ or os.getenv."""
    readers: set[str] = set()
    for path in [*PROJECT.glob("api/**/*.py"), *PROJECT.glob("worker/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv", "putenv"):
                readers.add(str(path.relative_to(PROJECT)))
    return readers


def test_the_environment_is_read_in_settings_alone() -> None:
    assert environment_readers() == {"api/settings.py", "worker/settings.py"}


def test_no_module_is_named_after_nothing() -> None:
    names = {path.stem for room in ("api", "worker", "ops") for path in PROJECT.glob(f"{room}/**/*.py")}

    assert names.isdisjoint({"utils", "util", "helpers", "common", "misc"})


def test_tests_have_no_packages() -> None:
    assert list(PROJECT.glob("tests/**/__init__.py")) == []
