"""The trainers' wheel stands alone: built, installed and imported where nothing of the service is."""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
TRAINER = """
import api
import worker
from mcore_ferry.integration import Peft, configure, create_peft, create_peft_hook, hf_to_mcore, mcore_to_hf

peft = create_peft({"rank": worker.RANK, "alpha": 32})
assert isinstance(peft, Peft)
hook = create_peft_hook(peft)
dim: int = peft.dim
print(api.NAME, worker.__file__, dim, configure.__module__, hf_to_mcore.__module__, mcore_to_hf.__module__)
"""
GEMMA3 = {
    "model_type": "gemma3_text",
    "vocab_size": 257,
    "hidden_size": 48,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}

pytestmark = pytest.mark.slow


def test_whatever_it_imports_is_among_its_dependencies() -> None:
    """The environment of these tests has all of the service's, so that nothing else would notice."""
    folder = PROJECT / "ops" / "trainer-wheel"
    described = tomllib.loads((folder / "pyproject.toml").read_text())
    rooms = [folder / path for path in described["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]]
    files = [file for room in rooms for file in ([room] if room.is_file() else room.rglob("*.py"))]

    wanted = {name for file in files for name in imported(file)} - sys.stdlib_module_names
    modules = packages_distributions()
    given = {re.split("[<>=]", text)[0] for text in described["project"]["dependencies"]}

    assert {"torch", "numba"} < wanted
    assert {name for name in wanted if not given & {found.lower() for found in modules[name]}} == {"pydantic_core"}


def imported(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name.split(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module is not None:
            yield node.module.split(".")[0]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the wheel was installed into."""
    wheels, target = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("site")
    offline = ("--no-deps", "--quiet", "--disable-pip-version-check")
    pip("wheel", "--no-build-isolation", "--wheel-dir", wheels, *offline, PROJECT / "ops" / "trainer-wheel")
    pip("install", "--no-index", "--target", target, *offline, *wheels.glob("mcore_ferry-*.whl"))
    return target


def pip(*arguments: str | Path) -> None:
    """Run pip in this environment."""
    subprocess.run([sys.executable, "-m", "pip", *arguments], check=True, cwd=PROJECT)


def beside_it(installed: Path, *statements: str) -> str:
    """What a trainer prints that has the wheel and no copy of Ferry's service; its output goes to stderr elsewhere."""
    preamble = (
        "import sys",
        "from pathlib import Path",
        # The service is found through the project's folder, wherever an editable install says that it is.
        "others = [path for path in sys.path if path and not (Path(path) / 'worker' / 'handlers').exists()]",
        f"sys.path[:] = [{str(installed)!r}, *others]",
        "from importlib.util import find_spec",
        "assert find_spec('worker') is None and find_spec('api') is None",
    )
    code = "\n".join((*preamble, *statements))
    return subprocess.check_output([sys.executable, "-W", "ignore", "-c", code], text=True, cwd=installed)


def test_every_module_imports_without_the_service(installed: Path) -> None:
    printed = beside_it(
        installed,
        "import importlib, pkgutil, mcore_ferry",
        "names = [module.name for module in pkgutil.walk_packages(mcore_ferry.__path__, 'mcore_ferry.')]",
        "for name in names: importlib.import_module(name)",
        "print(*names)",
    )

    assert {"mcore_ferry.integration.variants", "mcore_ferry.engine.copy"} <= set(printed.split())


def test_integration_offers_what_it_does_in_the_service(installed: Path) -> None:
    from worker import integration

    printed = beside_it(installed, "import mcore_ferry.integration as found; print(*found.__all__)")

    assert printed.split() == integration.__all__


def test_a_written_variant_opens_as_the_wheels_own_class(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(GEMMA3))
    written = tmp_path / "model_config.json"
    write = (
        "import json; from pathlib import Path",
        "from worker.mapping import to_megatron_model_config",
        "from worker.mapping.model_config import to_json_dict",
        f"config = to_json_dict(to_megatron_model_config({str(tmp_path)!r}))",
        f"Path({str(written)!r}).write_text(json.dumps(config))",
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", "\n".join(write)], check=True, cwd=PROJECT)

    printed = beside_it(
        installed,
        "from mcore_ferry.integration import load_model_config",
        f"config = load_model_config({str(written)!r})",
        "print(type(config).__module__, config.get_builder_cls().__module__, config.local_rotary_base)",
    )

    assert printed.split()[-3:] == ["mcore_ferry.integration.variants"] * 2 + ["10000.0"]


@pytest.fixture
def trainer(tmp_path: Path) -> Path:
    """A trainer's folder of scripts, two of which have our service's names."""
    (tmp_path / "worker.py").write_text("RANK = 16\n")
    (tmp_path / "api.py").write_text("NAME = 'trainer'\n")
    (tmp_path / "train.py").write_text(TRAINER)
    return tmp_path


def test_it_runs_beside_scripts_of_our_services_names(installed: Path, trainer: Path) -> None:
    paths = [str(trainer), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(installed), *paths])}

    printed = subprocess.check_output(
        [sys.executable, "-W", "ignore", "train.py"], text=True, cwd=trainer, env=environment
    )

    name, own, rank, *places = printed.split()
    assert (name, own, rank) == ("trainer", str(trainer / "worker.py"), "16")
    assert [place.partition(".")[0] for place in places] == ["mcore_ferry"] * 3


@pytest.mark.parametrize(("rank", "errors"), [("worker.RANK", 0), ("api.RANK", 1)])
def test_it_type_checks_beside_them(installed: Path, trainer: Path, rank: str, errors: int) -> None:
    (trainer / "train.py").write_text(TRAINER.replace("worker.RANK", rank) + ("" if not errors else "hook(peft)\n"))
    (trainer / "pyrightconfig.json").write_text(
        json.dumps({"include": ["train.py"], "extraPaths": [str(installed)], "typeCheckingMode": "basic"})
    )

    done = subprocess.run(
        [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable],
        cwd=trainer,
        capture_output=True,
        text=True,
    )

    found = [line for line in json.loads(done.stdout)["generalDiagnostics"] if line["severity"] == "error"]
    assert len(found) == 2 * errors, found
