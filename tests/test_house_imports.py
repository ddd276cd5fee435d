"""Who may know whom: the table of design section 1, checked on the source text of every module."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
STDLIB = sys.stdlib_module_names
SCRIPTS = {
    "demo_bert.py",
    "central/habana_model_runner.py",
    "central/finetuning/summarize_seeds.py",
    "pretraining/run_pretraining.py",
    "pretraining/data/prepare.py",
    "transformers/examples/pytorch/text-classification/run_glue.py",
    "transformers/examples/pytorch/question-answering/run_qa.py",
    "transformers/examples/pytorch/token-classification/run_ner.py",
}
HEAVY = ("torch", "numpy", "yaml", "h5py", "transformers")


def modules(*folders: str) -> list[Path]:
    found = sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    assert found, folders
    return found


def imports(path: Path) -> set[str]:
    """Dotted names a file imports anywhere, functions included; relative imports resolved."""
    names = set()
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = (
                ".".join([*package[: len(package) - node.level + 1], node.module or ""]) if node.level else node.module
            )
            names.add(base.rstrip("."))
            names |= {f"{base.rstrip('.')}.{alias.name}" for alias in node.names}
    return names


def top(name: str) -> str:
    return name.split(".")[0]


def is_under(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


COMMON = {path.stem: path for path in sorted((ROOT / "central").glob("*.py")) if path.name != "habana_model_runner.py"}


def is_common(name: str) -> bool:
    """Whether a name is of the files directly in central/, which parent and child both need."""
    return name == "central" or any(is_under(name, f"central.{stem}") for stem in COMMON)


@pytest.mark.parametrize("path", [*COMMON.values()], ids=lambda p: p.name)
def test_what_everybody_may_import_is_standard_library_only(path):
    for name in imports(path):
        assert top(name) in STDLIB or is_common(name), name


@pytest.mark.parametrize("path", modules("central/launch"), ids=lambda p: p.name)
def test_the_launcher_is_standard_library_only(path):
    for name in imports(path):
        assert top(name) in STDLIB or is_common(name) or is_under(name, "central.launch"), name


def test_only_one_file_of_the_launcher_starts_processes():
    starters = {"subprocess", "multiprocessing", "pty"}
    for path in [*modules("central/launch"), ROOT / "demo_bert.py", ROOT / "central/habana_model_runner.py"]:
        used = {top(name) for name in imports(path)} & starters
        calls = {n.attr for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Attribute)}
        used |= calls & {"system", "popen", "execv", "execvp", "execve", "execvpe", "fork", "posix_spawn"}
        assert not used or path.name == "processes.py", (path, used)


@pytest.mark.parametrize("path", modules("central/runtime"), ids=lambda p: p.name)
def test_the_runtime_knows_no_training_and_no_launcher(path):
    for name in imports(path):
        assert not is_under(name, "central.launch") and not is_under(name, "central.finetuning"), name
        assert top(name) not in ("pretraining", "transformers", "datasets"), name
        if path.name in ("environment.py", "rank.py", "exits.py", "checkpoints.py"):
            assert top(name) in STDLIB | {"central", "mpi4py"}, name


@pytest.mark.parametrize("path", modules("central/finetuning"), ids=lambda p: p.name)
def test_fine_tuning_knows_the_runtime(path):
    for name in imports(path):
        assert not is_under(name, "central.launch") and top(name) != "pretraining", name


@pytest.mark.parametrize("room", ["central", "central/launch", "central/runtime", "central/finetuning", "pretraining"])
def test_importing_a_room_does_nothing(room):
    assert not (ROOT / room / "__init__.py").exists() or (ROOT / room / "__init__.py").read_text() == ""


@pytest.mark.parametrize("path", modules("pretraining"), ids=lambda p: str(p.relative_to(ROOT)))
def test_pretraining_knows_runtime_only(path):
    for name in imports(path):
        assert top(name) != "transformers", name
        assert top(name) != "central" or is_common(name) or is_under(name, "central.runtime"), name


@pytest.mark.parametrize("path", modules("transformers"), ids=lambda p: p.name)
def test_the_fine_tuning_scripts_know_their_room_and_the_runtime(path):
    for name in imports(path):
        assert top(name) != "pretraining", name
        rooms = ("central.runtime", "central.finetuning")
        assert top(name) != "central" or is_common(name) or any(is_under(name, room) for room in rooms), name


def test_habana_frameworks_is_imported_in_one_place():
    users = [
        path.relative_to(ROOT)
        for path in modules("central", "pretraining", "transformers")
        if any(top(name) == "habana_frameworks" for name in imports(path))
    ]
    assert users == [Path("central/runtime/hpu.py")]


def test_nothing_but_tests_imports_an_entry_script():
    entries = {script.removesuffix(".py").replace("/", ".") for script in SCRIPTS}
    entries |= {Path(script).stem for script in SCRIPTS}
    for path in [ROOT / "demo_bert.py", *modules("central", "pretraining", "transformers", "demo", "benchmarks")]:
        assert not imports(path) & entries, path


def test_only_entry_scripts_touch_the_path():
    for path in modules("central", "pretraining", "transformers"):
        touches = "sys.path" in path.read_text()
        assert not touches or str(path.relative_to(ROOT)) in SCRIPTS, path


def test_there_is_no_import_cycle():
    ours = {
        str(path.relative_to(ROOT).with_suffix("")).replace("/", "."): imports(path)
        for path in modules("central", "pretraining")
        if path.name != "__init__.py"
    }
    graph = {name: {dep for dep in deps if dep in ours and dep != name} for name, deps in ours.items()}
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join([*way, name])
        if name not in done:
            for dep in graph[name]:
                visit(dep, (*way, name))
            done.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize(
    "argv",
    [
        ["-h"],
        ["pretraining", "-h"],
        ["finetuning", "-h"],
        "pretraining --model_name_or_path tiny --data_type fp32 -d cpu -p a b --accumulate_gradients --dry_run".split(),
        "finetuning --model_name_or_path base --data_type fp32 --device cpu --do_eval --dry_run".split(),
    ],
    ids=["help", "pretraining help", "finetuning help", "pretraining", "finetuning"],
)
def test_help_and_dry_run_import_nothing_heavy(argv):
    code = (
        "import sys, runpy\n"
        f"sys.argv = ['demo_bert.py', *{argv!r}]\n"
        "try: runpy.run_path('demo_bert.py', run_name='__main__')\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        f"loaded = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "assert not loaded, loaded"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
