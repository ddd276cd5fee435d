"""Every command line of the README starts on Open MPI 5, with a stand-in for the training scripts, on this CPU."""

import json
import shutil
import sys

import pytest
from launch_project import copy_project, run
from test_launch_lines import LINES
from test_launch_runner import started_by

QA = "transformers/examples/pytorch/question-answering/run_qa.py"
GLUE = "transformers/examples/pytorch/text-classification/run_glue.py"


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy in which every script is the stand-in."""
    project = copy_project(tmp_path_factory.mktemp("started"))
    for script in (QA, GLUE):
        (project / script).parent.mkdir(parents=True)
        shutil.copy(project / "pretraining" / "run_pretraining.py", project / script)
        text = (project / script).read_text().replace("parents[1]", "parents[4]")
        (project / script).write_text(text)
    return project


@pytest.mark.slow
@pytest.mark.mpi
@pytest.mark.parametrize("line", LINES, ids=[f"line{line['readme_line']}" for line in LINES])
def test_readme_line_starts(project, monkeypatch, tmp_path, line):
    started_by("openmpi5", monkeypatch)
    words = on_this_server(line["argv"], project.parent)
    place = ["--device", "cpu", "--output_dir", str(tmp_path), "--", "--steps", "1"]
    status, _, err, _ = run([sys.executable, str(project / "demo_bert.py"), *words, *place])
    assert status == 0, err
    world_size = int(words[words.index("--world_size") + 1]) if "--world_size" in words else 1
    facts = [json.loads(path.read_text()) for path in tmp_path.rglob("phase1_rank*.json")]
    assert sorted(seen["rank"] for seen in facts) == list(range(world_size))
    assert all(seen["local_rank"] == seen["rank"] and seen["world_size"] == world_size for seen in facts)


def on_this_server(words, folder):
    """The words with data of ours, and the line for four servers with all its ranks on this one."""
    left_out = ("--process_per_node", "--config_file")
    pairs = zip(["", *words], words)
    kept = [word for before, word in pairs if word not in left_out and before not in left_out]
    here = {"/data/phase1": str(folder / "phase 1"), "/data/phase2": str(folder / "phase 2")}
    return [here.get(word, word) for word in kept]
