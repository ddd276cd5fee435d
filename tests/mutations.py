"""A mutation round: small changes to the code, one at a time, each of which some test must notice.

    python tests/mutations.py [FILE ...] [--sample N | --all] [--seed S] [--jobs J]

First every test file runs once under a line tracer, so that a changed line is met by the tests that reach it, quick
ones first, then by those that start Python anew. Then each mutant is written into a copy of the project, and a process
forked from this one, which has torch imported already, runs those tests until one fails.
Words of messages are not mutated. Mutants that change nothing a user could see stand in `mutations_equivalent.txt` with
a reason. Each result is printed at once, and a round that is ended early prints the table of what it had. Ends with 1
below 95 % caught.

All of it happens among processes of its own, seen by no others: mutants of what ends processes may kill any they see.
"""

import argparse
import ast
import collections
import contextlib
import copy
import dataclasses
import functools
import hashlib
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EQUIVALENT = Path(__file__).with_name("mutations_equivalent.txt")
# Code -> the tests of that code (names without test_ and .py); test_mutation_tool.py checks that these are there.
NETWORK = "pretraining_laws pretraining_modeling"
LAUNCH = "launch_compose launch_options launch_preflight launch_reference_yaml"
ENGINE = "pretraining_laws pretraining_requests"
TESTS = {
    "pretraining/lamb.py": "pretraining_lamb pretraining_laws",
    "pretraining/schedule.py": "pretraining_lamb",
    "pretraining/modeling.py": f"{NETWORK} pretraining_checkpoint",
    "pretraining/kernels/*.py": f"{NETWORK} pretraining_model_stats",
    "pretraining/kernels/choice.py": "runtime_device",
    "pretraining/kernels/cuda.py": "pretraining_cuda",
    "pretraining/model_stats.py": "pretraining_model_stats pretraining_requests",
    "pretraining/packing.py": "data_packing pretraining_dataset",
    "pretraining/batches.py": f"{NETWORK} pretraining_dataset",
    "pretraining/dataset.py": "pretraining_dataset pretraining_laws",
    "pretraining/evaluation.py": f"pretraining_dataset {ENGINE}",
    "pretraining/vocabulary.py": "data_wordpiece pretraining_checkpoint pretraining_requests",
    "pretraining/checkpoint.py": f"pretraining_checkpoint {ENGINE}",
    "pretraining/convert.py": f"pretraining_checkpoint {ENGINE}",
    "pretraining/distributed.py": "pretraining_exchange",
    "pretraining/metrics.py": "pretraining_metrics pretraining_laws",
    "pretraining/preflight.py": ENGINE,
    "pretraining/resume.py": f"{ENGINE} pretraining_script",
    "pretraining/train_loop.py": ENGINE,
    "pretraining/trainer.py": ENGINE,
    "pretraining/data/instances.py": "data_instances data_shards",
    "pretraining/data/masking.py": "data_instances data_shards",
    "pretraining/data/pack.py": "data_packing",
    "central/resources.py": "resources",
    "central/slurm.py": LAUNCH,
    "central/launch/*.py": LAUNCH,
    "central/launch/batch.py": "launch_compose launch_options pretraining_laws",
    "central/launch/processes.py": "launch_runner streams",
    "central/launch/supervise.py": "launch_compose launch_runner streams",
    "central/runtime/rank.py": "house_exits",
    "pretraining/reports.py": f"{ENGINE} pretraining_objective pretraining_script",
    "pretraining/objective.py": "pretraining_objective",
    "pretraining/optimizer.py": "pretraining_optimizer",
    "central/finetuning/attention_cpu.py": "finetuning_kernels",
    "central/finetuning/batching.py": "finetuning_batches finetuning_loss",
    "central/finetuning/features.py": "finetuning_batches finetuning_features",
}
SKIPPED = ("slow", "mpi", "slurm", "hosts", "hpu_matrix", "fresh", "faults", "cuda", "hpu")
MARKS = " and ".join(f"not {mark}" for mark in SKIPPED)
PRELOADED = (
    *("numpy", "h5py", "yaml", "torch", "torch.distributed", "torch.nn.parallel", "safetensors.torch", "hypothesis"),
    *("tokenizers", "datasets", "transformers", "transformers.trainer", "transformers.models.bert.modeling_bert"),
)
ALONE = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")  # a program as process 1, which nobody can kill
KINDS = ("caught", "crashed", "late", "survived", "unreached", "unclear", "equivalent", "not run")
OWN_FAULT = 70  # exit status of a child in which this script failed, not a test
ENDING = (signal.SIGTERM, signal.SIGINT)
TRACING = 3600  # seconds at most for a file of tests under the tracer, on a busy machine
BUDGET = 60  # seconds of processor time of tests for one mutant, measured without it
SWAPPED = {
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult},
    **{ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.BitXor: ast.BitAnd},
    **{ast.LShift: ast.RShift, ast.RShift: ast.LShift, ast.And: ast.Or, ast.Or: ast.And},
}
EDGE = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt}
OPPOSITE = {
    **{ast.Lt: ast.GtE, ast.GtE: ast.Lt, ast.Gt: ast.LtE, ast.LtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq},
    **{ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In},
}
NAMES = {"min": "max", "max": "min", "any": "all", "all": "any"}
SYMMETRIC = {"minimum", "maximum", "addcmul_", "hypot", "equal"}  # whose first two arguments may change places
NEVER_TESTED = ("__name__", "TYPE_CHECKING")  # in conditions: what is under them is for scripts and type checkers
UNTOUCHED = {"annotation", "returns", "decorator_list", "exc", "cause", "type_params"}


def changed(node, **fields):
    """A copy of a node with other fields."""
    new = copy.copy(node)
    new.__dict__.update(fields)
    return new


def expressions(node):
    """What an expression may become."""
    match node:
        case ast.BinOp(op=op) if type(op) in SWAPPED:
            yield changed(node, op=SWAPPED[type(op)]())
        case ast.BoolOp(op=op):
            yield changed(node, op=SWAPPED[type(op)]())
        case ast.Compare(ops=[op, *_]):
            for table in (EDGE, OPPOSITE):
                if type(op) in table:
                    yield changed(node, ops=[table[type(op)](), *node.ops[1:]])
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            yield node.operand
        case ast.Constant(value=bool(value)):
            yield changed(node, value=not value)
        case ast.Constant(value=int(value)):
            yield changed(node, value=value + 1)
        case ast.Constant(value=float(value)):
            yield changed(node, value=2 * value or 1.0)
        case ast.IfExp(test=ast.Name() | ast.Attribute() | ast.Call()):
            yield changed(node, test=ast.UnaryOp(ast.Not(), node.test))
        case ast.Call(func=func, args=args, keywords=keywords):
            if isinstance(func, ast.Name) and func.id in NAMES:
                yield changed(node, func=ast.Name(NAMES[func.id]))
            elif (
                len(args) > 1
                and ast.unparse(func).split(".")[-1] not in SYMMETRIC
                and not any(isinstance(arg, ast.Starred) for arg in args[:2])
            ):
                yield changed(node, args=[args[1], args[0], *args[2:]])
            for keyword in keywords:
                if keyword.arg:
                    yield changed(node, keywords=[other for other in keywords if other is not keyword])


def statements(node):
    """What a statement may become."""
    match node:
        case (
            ast.Expr(value=ast.Call())
            | ast.Assign(targets=[ast.Attribute() | ast.Subscript()])
            | (ast.Raise() | ast.Continue() | ast.Break() | ast.Delete())
        ):
            yield ast.Pass()
        case ast.AugAssign(op=op):
            yield ast.Pass()
            if type(op) in SWAPPED:
                yield changed(node, op=SWAPPED[type(op)]())
        case ast.Return(value=value) if value and not isinstance(value, ast.Constant):
            yield changed(node, value=ast.Constant(None))
        case ast.If(test=ast.Name() | ast.Attribute() | ast.Call() as test):
            yield changed(node, test=ast.UnaryOp(ast.Not(), test))


def header(node) -> str:
    """The first line of a node's text: a statement without its body."""
    return ast.unparse(ast.fix_missing_locations(node)).split("\n", 1)[0]


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One change: `holder[key]`, a field of the parsed file, becomes `new`."""

    path: str
    original: str  # text of the file
    tree: ast.Module
    holder: dict | list
    key: str | int
    new: ast.AST
    shown: ast.AST  # the node whose text says what changes
    where: str
    inside: bool  # of a function: its lines run when tests run, others when the file is imported
    lines: range

    def __str__(self) -> str:
        with self.applied() as new:
            after = header(new)
        return f"{self.path} | {self.where} | {header(self.shown)} -> {after}"

    @contextlib.contextmanager
    def applied(self):
        """The tree with the change for as long as this lasts; gives the node to show."""
        old, self.holder[self.key] = self.holder[self.key], self.new
        try:
            yield self.new if self.shown is old else self.shown
        finally:
            self.holder[self.key] = old

    def source(self) -> str:
        """The text of the changed file."""
        with self.applied():
            return ast.unparse(ast.fix_missing_locations(self.tree))


def mutants_of(path: str) -> list[Mutant]:
    """All mutants of a file, in the order of its text."""
    text = (ROOT / path).read_text()
    tree = ast.parse(text)
    found = []

    def walk(node, parent, where, inside, lines):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            where = f"{where}.{node.name}".lstrip(".")
        for field, value in ast.iter_fields(node):
            many = isinstance(value, list)
            for key, child in enumerate(value) if many else [(field, value)]:
                if field in UNTOUCHED or not isinstance(child, ast.AST) or isinstance(child, ast.JoinedStr):
                    continue
                if isinstance(child, ast.If) and any(name in ast.unparse(child.test) for name in NEVER_TESTED):
                    continue
                within = inside or (isinstance(node, (ast.FunctionDef, ast.Lambda)) and field == "body")
                reach = lines
                if isinstance(child, ast.stmt):
                    body = getattr(child, "body", None)
                    last = max(child.lineno, body[0].lineno - 1) if body else child.end_lineno
                    reach = range(child.lineno, last + 1)
                makers = statements if isinstance(child, ast.stmt) else expressions
                holder = value if many else node.__dict__
                shown = child
                if isinstance(child, ast.Constant):  # a number says little: show what it stands in
                    shown = parent if isinstance(node, ast.keyword) else node
                for new in makers(child):
                    found.append(Mutant(path, text, tree, holder, key, new, shown, where, within, reach))
                walk(child, node, where, within, reach)

    walk(tree, tree, "", False, range(0))
    return found


class Trace:
    """A pytest plugin: which lines of the scope each test reaches, whether it starts Python anew, and what it takes.

    What a fixture of a wider scope reaches counts for every test that uses it. `work`: seconds of processor time, which
    are no more on a busy machine.
    """

    def __init__(self, root: Path, paths: list[str]):
        self.files = {str(root / path): path for path in paths}
        self.now, self.fixtures = set(), {}
        self.tests, self.work, self.bad = {}, {}, set()
        self.seconds = collections.Counter()
        self.running, self.starting = "", set()  # a test, and those that started Python

    def note(self, event, args):
        """An audit hook."""
        if event == "subprocess.Popen" and Path(sys.executable).name in str(args[1]):
            self.starting.add(self.running)

    def enter(self, frame, _event, _arg):
        path = self.files.get(frame.f_code.co_filename)
        if path is None:
            return None

        def line(frame, event, _arg):
            if event == "line":
                self.now.add((path, frame.f_lineno))
            return line

        return line

    @contextlib.contextmanager
    def into(self, lines: set):
        kept, self.now = self.now, lines
        try:
            yield
        finally:
            self.now = kept

    def hooks(self):
        import pytest

        trace = self
        sys.addaudithook(self.note)

        class Plugin:
            @pytest.hookimpl(wrapper=True)
            def pytest_runtest_protocol(self, item):
                lines = trace.tests[item.nodeid] = (set(), item.fixturenames)
                trace.running, began = item.nodeid, sum(os.times()[:4])
                with trace.into(lines[0]):
                    sys.settrace(trace.enter)
                    threading.settrace(trace.enter)
                    try:
                        return (yield)
                    finally:
                        sys.settrace(None)
                        threading.settrace(None)
                        trace.work[item.nodeid] = sum(os.times()[:4]) - began

            @pytest.hookimpl(wrapper=True)
            def pytest_fixture_setup(self, fixturedef):
                if fixturedef.scope == "function":
                    return (yield)
                with trace.into(trace.fixtures.setdefault(fixturedef.argname, set())):
                    return (yield)

            def pytest_runtest_logreport(self, report):
                trace.seconds[report.nodeid] += report.duration
                if report.outcome != "passed":
                    trace.bad.add((report.nodeid, report.outcome))

        return Plugin()

    def result(self) -> dict:
        bad = {name for name, _ in self.bad}
        reached = {}
        for name, (lines, fixtures) in self.tests.items():
            by_path = collections.defaultdict(list)
            for path, line in sorted(lines.union(*(self.fixtures.get(fixture, ()) for fixture in fixtures))):
                by_path[path].append(line)
            if name not in bad:
                reached[name] = {
                    "seconds": self.seconds[name],
                    "work": self.work[name],
                    "lines": by_path,
                    "starts_python": name in self.starting,
                }
        return {"tests": reached, "failed": sorted(name for name, outcome in self.bad if outcome == "failed")}


class Chosen:
    """A pytest plugin: runs the named tests alone, in the order given."""

    def __init__(self, names: list[str]):
        self.order = {name: place for place, name in enumerate(names)}

    def pytest_collection_finish(self, session):
        session.items[:] = sorted(
            (item for item in session.items if item.nodeid in self.order), key=lambda item: self.order[item.nodeid]
        )


def run_pytest(folder: Path, files: list[str], plugin, *words: str) -> int:
    import pytest

    sys.path.insert(0, str(folder))
    plain = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", f"--basetemp={folder}.tmp", "-m", MARKS]
    return int(pytest.main([*plain, *words, *files], plugins=[plugin]))


def clone(folder: Path) -> Path:
    """The files git knows and new ones, as they are now."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


def in_processes(tasks, folders):
    """Run `work(folder)` of each (work, seconds) in a forked process, one per folder at a time.

    Yields (place of the task, exit status or None where its time was over, the end of what it printed).
    """
    free, running = list(folders), {}
    waiting = collections.deque(enumerate(tasks))
    try:
        while waiting or running:
            while waiting and free:
                place, (work, seconds) = waiting.popleft()
                folder = free.pop()
                running[fork(work, folder)] = (place, folder, time.monotonic() + seconds)
            asked = signal.sigtimedwait(ENDING, 0.02)
            if asked and asked.si_pid == 0:  # of no process here: a mutant that ends its parent does not end the round
                sys.exit(128 + asked.si_signo)
            for pid, (place, folder, end) in list(running.items()):
                late = time.monotonic() > end
                done, status = os.waitpid(pid, os.WNOHANG)
                if not done and not late:
                    continue
                with contextlib.suppress(ProcessLookupError):  # the group is the child's own: what it started, ends
                    os.killpg(pid, signal.SIGKILL)
                if not done:
                    os.waitpid(pid, 0)
                del running[pid]
                free.append(folder)
                printed = Path(f"{folder}.log")
                words = printed.read_bytes()[-2000:].decode(errors="replace") if printed.exists() else ""
                yield place, os.waitstatus_to_exitcode(status) if done else None, words
    finally:
        for pid in running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)


def fork(work, folder: Path) -> int:
    pid = os.fork()
    if pid:
        with contextlib.suppress(OSError):  # the child does the same: whoever is first
            os.setpgid(pid, pid)
        return pid
    status = OWN_FAULT
    try:
        os.setpgid(0, 0)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
        log = os.open(f"{folder}.log", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.chdir(folder)
        status = work(folder)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)


@functools.cache
def scope() -> dict[str, list[str]]:
    """{file: its test files}, the last fitting line of the table above."""
    return {
        str(path.relative_to(ROOT)): [f"tests/test_{name}.py" for name in names.split()]
        for glob, names in TESTS.items()
        for path in sorted(ROOT.glob(glob))
        if path.stat().st_size
    }


def trace_tests(paths: list[str], folders: list[Path], cache: Path) -> dict:
    """{test: {seconds, lines by path}} of the tests of these files; what has not changed since is kept."""
    files = [ROOT / name for name in sorted({name for path in paths for name in scope()[path]})]
    code = {p: [path for path, names in scope().items() if str(p.relative_to(ROOT)) in names] for p in files}
    own = Path(__file__)
    texts = {p: b"".join(file.read_bytes() for file in (own, p, *(ROOT / path for path in code[p]))) for p in files}
    kept = {p: cache / f"{p.stem}_{hashlib.sha256(texts[p]).hexdigest()[:16]}.json" for p in files}
    cache.mkdir(parents=True, exist_ok=True)
    missing = [p for p in files if not kept[p].exists()]

    def work_on(path):
        def work(folder):
            trace = Trace(folder, code[path])
            status = run_pytest(folder, [f"tests/{path.name}"], trace.hooks())
            if status in (0, 1, 5):
                kept[path].write_text(json.dumps(trace.result()))
            return status

        return work

    for place, status, words in in_processes([(work_on(path), TRACING) for path in missing], folders):
        print(f"traced {missing[place].name}: {'time over' if status is None else status}", flush=True)
        if not kept[missing[place]].exists():
            print(f"its tests are left out; it printed last:\n{words}", flush=True)
    tests = {}
    for path in files:
        if kept[path].exists():
            result = json.loads(kept[path].read_text())
            tests.update(result["tests"])
            for name in result["failed"]:
                print(f"left out, it fails without a mutant: {name}")
    return tests


def tests_for(mutant: Mutant, tests: dict) -> list[str]:
    """Tests that reach a mutant's lines (any where these are outside functions), quick ones first, within the budget.

    Then those that start Python anew: what their children reach is not traced.
    """
    own = {name: test for name, test in tests.items() if name.split("::")[0] in scope()[mutant.path]}
    reaching = {
        name
        for name, test in own.items()
        if not mutant.inside or any(line in mutant.lines for line in test["lines"].get(mutant.path, ()))
    }
    met = [name for name, test in own.items() if name in reaching or test["starts_python"]]
    total = collections.Counter()
    for name in met:
        total[name.split("::")[0]] += tests[name]["work"]
    files = {name: name.split("::")[0] for name in met}
    met.sort(key=lambda name: (name not in reaching, total[files[name]], files[name], tests[name]["work"]))
    chosen, spent = [], 0.0
    for name in met:
        spent += tests[name]["work"]
        if chosen and spent > BUDGET:
            break
        chosen.append(name)
    return chosen


def try_mutant(mutant: Mutant, names: list[str], originals: dict[str, str]):
    """Work for a process of its own: 0 where the tests pass, the mutant survived."""
    text = mutant.source()

    def work(folder):
        for name, original in originals.items():  # the mutant tried here before
            if (folder / name).read_text() != original:
                (folder / name).write_text(original)
        path = folder / mutant.path
        cached = Path(importlib.util.cache_from_source(path))
        cached.unlink(missing_ok=True)
        path.write_text(text)
        sys.dont_write_bytecode = True
        return run_pytest(folder, sorted({name.split("::")[0] for name in names}), Chosen(names), "-x")

    return work


def equivalent() -> dict[str, str]:
    """{mutant: reason} of the list beside this file: lines `path | where | before -> after # reason`."""
    lines = EQUIVALENT.read_text().splitlines() if EQUIVALENT.exists() else []
    return dict(line.rsplit(" # ", 1) for line in lines if line.strip() and not line.startswith("#"))


def read_words(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", help="files of the scope, default all")
    parser.add_argument("--sample", type=int, default=25, help="mutants per file")
    parser.add_argument("--all", action="store_true", help="every mutant")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--list", action="store_true", help="print the mutants and run nothing")
    return parser.parse_args(argv)


def main(argv=None) -> int:
    words = read_words(argv)
    paths = [str(Path(file).resolve().relative_to(ROOT)) for file in words.files] or list(scope())
    for path in set(paths) - set(scope()):
        print(f"{path}: no tests are named for it in {Path(__file__).name}")
    paths = [path for path in paths if path in scope()]
    chosen = []
    for path in paths:
        mutants = mutants_of(path)
        size = len(mutants) if words.all else min(words.sample, len(mutants))
        chosen += sorted(random.Random(f"{words.seed} {path}").sample(mutants, size), key=mutants.index)
    if words.list:
        print("\n".join(map(str, chosen)))
        return 0
    if os.getpid() != 1:
        os.execvp(ALONE[0], [*ALONE, sys.executable, *sys.argv[:1], *(sys.argv[1:] if argv is None else argv)])
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != ROOT / "tests"]
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    for name in PRELOADED:
        importlib.import_module(name)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutations_") as base:
        if (ROOT.parent / "shared").exists():  # where the tests look for real data: beside the checkout
            (Path(base) / "shared").symlink_to(ROOT.parent / "shared")
        folders = [clone(Path(base) / f"copy_{job}") for job in range(words.jobs)]
        tests = trace_tests(paths, folders, ROOT / ".cache" / "mutations")
        fates = ["not run"] * len(chosen)
        try:
            run_round(chosen, tests, folders, fates)
        finally:
            status = report(chosen, fates, began)
        return status


def fate_of(status: int | None) -> str:
    """What an exit status says of the mutant; "unclear" is a fault of pytest or of this script, not of a test."""
    match status:
        case None:
            return "late"
        case 0:
            return "survived"
        case 3 | 4 | 5:  # pytest: internal error, wrong words, no tests
            return "unclear"
        case _ if status == OWN_FAULT:
            return "unclear"
    return "crashed" if status < 0 else "caught"


def run_round(chosen: list[Mutant], tests: dict, folders: list[Path], fates: list[str]):
    """Write into `fates` what became of each mutant, in the words of `KINDS`, as soon as it is known."""
    known = equivalent()
    tasks, places, originals = [], [], {mutant.path: mutant.original for mutant in chosen}
    for place, mutant in enumerate(chosen):
        names = tests_for(mutant, tests)
        if str(mutant) in known:
            fates[place] = "equivalent"
        elif not names:
            fates[place] = "unreached"
        else:
            places.append(place)
            tasks.append(
                (try_mutant(mutant, names, originals), 60 + 10 * sum(tests[name]["seconds"] for name in names))
            )
    for number, (task, status, words) in enumerate(in_processes(tasks, folders), 1):
        fate = fates[places[task]] = fate_of(status)
        mutant = chosen[places[task]]
        print(f"{number}/{len(tasks)} {fate}: line {mutant.lines.start}: {mutant}", flush=True)
        if fate == "unclear":
            print(f"status {status}; it printed last:\n{words}", flush=True)


def report(chosen: list[Mutant], fates: list[str], began: float) -> int:
    """Print a table per file and the mutants not caught; 1 below 95 % caught of those that were tried."""
    by_path = collections.defaultdict(collections.Counter)
    for mutant, fate in zip(chosen, fates):
        by_path[mutant.path][fate] += 1
    total = sum(by_path.values(), collections.Counter())
    print(f"\n{'':40}" + "".join(f"{kind:>12}" for kind in KINDS))
    for path, counts in [*sorted(by_path.items()), ("all", total)]:
        print(f"{path:40}" + "".join(f"{counts[kind]:>12}" for kind in KINDS))
    for mutant, fate in zip(chosen, fates):
        if fate in ("survived", "unreached", "unclear"):
            print(f"{fate}: line {mutant.lines.start}: {mutant}")
    counted = len(chosen) - total["equivalent"] - total["not run"]
    share = sum(total[kind] for kind in ("caught", "crashed", "late")) / max(1, counted)
    took = time.monotonic() - began
    print(f"{share:.1%} of {counted} mutants caught, {total['equivalent']} equivalent, {took:.0f} s")
    return int(share < 0.95)


if __name__ == "__main__":
    sys.exit(main())
