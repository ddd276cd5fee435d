"""prepare.py from the outside: text in, HDF5 out; same bytes always; killed, restarted, starved, refused."""

import argparse
import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import textwrap
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from central.runtime import exits
from central.runtime.exits import BadRequest
from pretraining.data import pipeline, prepare, prepare_options, request_options, sources
from pretraining.data.hdf5 import write_rows
from pretraining.data.wordpiece import SPECIAL_TOKENS, Tokenizer, Vocabulary, VocabularyFile

WORDS = [f"w{number}" for number in range(300)]
PHASES = {64: "seq_len_64_max_pred_10", 128: "seq_len_128_max_pred_20"}


def write_text(path: Path, documents: int, seed: int = 0) -> Path:
    """Documents of sentences of known words, one sentence a line; each names its document by its first word."""
    rng = random.Random(seed)
    with open(path, "w") as file:
        for number in range(documents):
            for _ in range(rng.randint(1, 20)):
                file.write(" ".join([f"d{number}", *rng.choices(WORDS, k=rng.randint(2, 20))]) + ".\n")
            file.write("\n")
    return path


@pytest.fixture
def text(tmp_path) -> Path:
    return write_text(tmp_path / "text.txt", 300)


@pytest.fixture
def vocab(tmp_path) -> Path:
    tokens = [*SPECIAL_TOKENS, ".", *WORDS, *(f"d{number}" for number in range(300))]
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(tokens) + "\n")
    return path


def words(text: Path, vocab: Path, out: Path, *more: str) -> list[str]:
    options = "--corpus c --sentences line --max_seq_length 64 128 --max_predictions_per_seq 10 20 --num_shards 4"
    return [
        *("--input", str(text), "--vocab_file", str(vocab), "--output_dir", str(out)),
        *options.split(),
        *("--num_processes", "1"),
        *more,
    ]


def files_of(out: Path) -> dict[str, str]:
    """Digest of every file that training reads."""
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.glob("hdf5*/**/*"))
        if path.is_file()
    }


def read(path: Path) -> tuple[dict, dict]:
    with h5py.File(path) as file:
        return {name: file[name][:] for name in file}, dict(file.attrs)


def folder(out: Path, seq_len: int) -> Path:
    return out / f"hdf5_lower_case_1_{PHASES[seq_len]}_masked_lm_prob_0.15_random_seed_12345_dupe_factor_5" / "c"


def command(*arguments: str) -> list[str]:
    return [sys.executable, prepare.__file__, *arguments]


def test_the_whole_run(text, vocab, tmp_path):
    out = tmp_path / "out"
    assert prepare.main(words(text, vocab, out)) == 0
    for seq_len in PHASES:
        names = sorted(path.name for path in folder(out, seq_len).iterdir())
        assert names == sorted(
            ["c_test_0.hdf5", *(f"c_training_{n}.hdf5" for n in range(4))]
            + ["corpus.json", "token_counts.npy", "tokenizer_config.json", "vocab.txt"]
        )
        for path in folder(out, seq_len).glob("*.hdf5"):
            arrays, attributes = read(path)
            rows = len(arrays["input_ids"])
            assert {name: (array.dtype, array.shape[1:]) for name, array in arrays.items()} == {
                "input_ids": (np.int32, (seq_len,)),
                "input_mask": (np.int8, (seq_len,)),
                "segment_ids": (np.int8, (seq_len,)),
                "masked_lm_positions": (np.int32, (10 * seq_len // 64,)),
                "masked_lm_ids": (np.int32, (10 * seq_len // 64,)),
                "next_sentence_labels": (np.int8, ()),
            }
            assert attributes["sequences"] == rows and attributes["tokens"] == arrays["input_mask"].sum()
            assert attributes["masked_tokens"] == np.count_nonzero(arrays["masked_lm_positions"])
            assert attributes["random_next"] == arrays["next_sentence_labels"].sum()
            tokens = tuple(vocab.read_text().split())
            expected = {
                "format": "bert-hdf5-1",
                "random_seed": 12345,
                "vocab_sha256": Vocabulary(tokens).sha256,
                "vocab_size": len(tokens),
                "max_seq_length": seq_len,
                "max_predictions_per_seq": 10 * seq_len // 64,
                "masked_lm_prob": 0.15,
                "do_lower_case": 1,
                "whole_word_masking": 0,
                "split": path.name.split("_")[1],
                "dupe_factor": 1 if "test" in path.name else 5,
            }
            assert {name: attributes[name] for name in expected} == expected
    assert (folder(out, 64) / "vocab.txt").read_text() == vocab.read_text()
    assert json.loads((folder(out, 64) / "tokenizer_config.json").read_text())["do_lower_case"] is True


def originals(path: Path) -> np.ndarray:
    """The ids before masking."""
    arrays, _ = read(path)
    ids = arrays["input_ids"].copy()
    rows, slots = np.nonzero(arrays["masked_lm_positions"])
    ids[rows, arrays["masked_lm_positions"][rows, slots]] = arrays["masked_lm_ids"][rows, slots]
    return ids


def test_held_out_documents_are_never_trained_on(text, vocab, tmp_path):
    out = tmp_path / "out"
    prepare.main(words(text, vocab, out))
    first = 6 + len(WORDS)  # id of d0
    used = {}
    for split in ("training", "test"):
        ids = [originals(path) for path in folder(out, 128).glob(f"*{split}*.hdf5")]
        used[split] = set(np.unique(np.concatenate(ids))) - set(range(first))
    assert not used["training"] & used["test"]
    assert len(used["test"]) == 30 and len(used["training"]) == 270
    counts = np.load(folder(out, 64) / "token_counts.npy")
    expected = np.zeros(len(counts), np.int64)
    ids = {token: number for number, token in enumerate(vocab.read_text().split())}
    for document in text.read_text().strip("\n").split("\n\n"):
        if ids[document.split()[0]] in used["training"]:
            for word in document.replace(".", " .").split():
                expected[ids[word]] += 1
    assert counts.dtype == np.int64 and (counts == expected).all()


def test_same_bytes_whatever_the_number_of_processes(text, vocab, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "BATCH_BYTES", 8192)  # several batches
    prepare.main(words(text, vocab, tmp_path / "one"))
    prepare.main(words(text, vocab, tmp_path / "two", "--num_processes", "2"))
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two") != {}
    prepare.main(words(text, vocab, tmp_path / "other", "--random_seed", "1"))
    ours = {Path(name).name: digest for name, digest in files_of(tmp_path / "one").items() if "_64_" in name}
    others = {Path(name).name: digest for name, digest in files_of(tmp_path / "other").items() if "_64_" in name}
    assert all(ours[name] != others[name] for name in ours if name.endswith(".hdf5"))


def test_books_are_told_alike_by_all_processes_and_again(vocab, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sources, "BATCH_BYTES", 8192)
    books = tmp_path / "books"
    books.mkdir()
    rng = random.Random(0)
    for number in range(6):
        sentences = (" ".join(rng.choices(WORDS, k=rng.randint(3, 20))).capitalize() + "." for _ in range(200))
        (books / f"{number}.txt").write_text(textwrap.fill(" ".join(sentences), 70))
    with tarfile.open(tmp_path / "books.tar", "w") as archive:
        archive.add(books, "books")
    for place in (books, tmp_path / "books.tar"):
        out = tmp_path / f"out_{place.name}"
        rules = [*words(place, vocab, out, "--keep_tokens"), "--sentences", "rules"]
        prepare.main(rules)
        assert "\n6 documents, " in capsys.readouterr().out
        other = [*words(place, vocab, tmp_path / f"two_{place.name}"), "--sentences", "rules", "--num_processes", "2"]
        prepare.main(other)
        assert files_of(out) == files_of(tmp_path / f"two_{place.name}")
        capsys.readouterr()
        prepare.main(rules)
        assert "3 of 3 shards are there already" in capsys.readouterr().out
        with pytest.raises(BadRequest, match="corpus_sha256"):
            prepare.main([*rules, "--one_document_per_file", "0"])
        said = capsys.readouterr().out
        assert "of another request, made anew" in said and "\n6 documents, " in said


def test_steps_alone_give_the_bytes_of_the_whole_run(text, vocab, tmp_path):
    prepare.main(words(text, vocab, tmp_path / "whole"))
    step = words(text, vocab, tmp_path / "steps")
    with pytest.raises(BadRequest, match="run `prepare.py shard` first"):
        prepare.main(["hdf5", *step[2:]])
    prepare.main(["shard", *step])
    prepare.main(["hdf5", *step[2:]])  # without --input
    assert files_of(tmp_path / "whole") == files_of(tmp_path / "steps")


def test_extract_then_prepare_gives_the_same(text, vocab, tmp_path):
    prepare.main(["extract", "--input", str(text), "--output_dir", str(tmp_path / "plain"), "--num_processes", "1"])
    (file,) = (tmp_path / "plain").glob("*.txt")
    assert file.read_text().split() == text.read_text().split()
    prepare.main(words(text, vocab, tmp_path / "one"))
    prepare.main(words(tmp_path / "plain", vocab, tmp_path / "two"))
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")


def test_vocabulary_of_the_users_text(text, tmp_path, capsys):
    pytest.importorskip("tokenizers")
    out = tmp_path / "new" / "vocab.txt"
    prepare.main(["vocab", "--input", str(text), "--vocab_size", "200", "--vocab_file", str(out)])
    tokens = out.read_text().split("\n")[:-1]
    assert tokens[:5] == list(SPECIAL_TOKENS) and 100 < len(tokens) <= 200
    assert (len(tokens) < 200) == ("of 200 asked for" in capsys.readouterr().out)
    prepare.main(words(text, out, tmp_path / "out"))
    arrays, _ = read(folder(tmp_path / "out", 64) / "c_training_0.hdf5")
    assert (arrays["masked_lm_ids"] == 1).mean() < 0.01  # [UNK]


def test_a_finished_run_is_not_done_again(text, vocab, tmp_path, capsys):
    out = tmp_path / "out"
    prepare.main(words(text, vocab, out))
    times = {path: path.stat().st_mtime_ns for path in out.glob("hdf5*/c/*.hdf5")}
    assert not list(out.glob("tokens_c/*.tokens"))
    prepare.main(words(text, vocab, out))
    assert times == {path: path.stat().st_mtime_ns for path in times}
    assert "5 of 5 shards are there already" in capsys.readouterr().out


def test_only_the_missing_shard_is_made_again(text, vocab, tmp_path):
    out = tmp_path / "out"
    prepare.main(words(text, vocab, out))
    before = files_of(out)
    gone = folder(out, 64) / "c_training_2.hdf5"
    times = {path: path.stat().st_mtime_ns for path in out.glob("hdf5*/c/*.hdf5") if path != gone}
    gone.unlink()
    prepare.main(words(text, vocab, out))
    assert files_of(out) == before
    assert times == {path: path.stat().st_mtime_ns for path in times}


def test_another_text_under_the_same_name_is_refused(text, vocab, tmp_path):
    out = tmp_path / "out"
    prepare.main(words(text, vocab, out))
    write_text(text, 290, seed=1)
    with pytest.raises(BadRequest, match="corpus_sha256.*choose another --corpus"):
        prepare.main(words(text, vocab, out))


def test_killed_anywhere_it_ends_with_the_same_bytes(text, vocab, tmp_path):
    write_text(text, 3000)
    prepare.main(words(text, vocab, tmp_path / "calm"))
    expected = files_of(tmp_path / "calm")
    out = tmp_path / "out"
    rng = random.Random(0)
    done = False
    for attempt in range(12):
        started = time.monotonic()
        run = subprocess.Popen(
            command(*words(text, vocab, out)),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        wait_for = rng.choice(["tokens_c/*.npz*", "hdf5*/c/*.tmp", "hdf5*/c/c_t*_0.hdf5", "hdf5*/c/c_training_2.hdf5*"])
        while run.poll() is None and not list(out.glob(wait_for)) and time.monotonic() - started < 20:
            time.sleep(0.002)
        time.sleep(rng.random() * 0.02)
        done = run.poll() is not None
        if done:
            break
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
        for path in out.glob("hdf5*/c/*.hdf5"):
            assert expected[str(path.relative_to(out))] == hashlib.sha256(path.read_bytes()).hexdigest(), attempt
    if not done:
        assert prepare.main(words(text, vocab, out)) == 0
    assert files_of(out) == expected
    assert not list(out.rglob("*.tmp"))


def test_killed_at_random_moments_while_its_workers_live_on(text, vocab, tmp_path):
    """Only the parent is killed, as by a system short of memory, and the next run starts at once."""
    write_text(text, 3000)
    out = tmp_path / "out"
    line = command(*words(text, vocab, out, "--num_processes", "2"))
    started = time.monotonic()
    subprocess.run(
        command(*words(text, vocab, tmp_path / "calm", "--num_processes", "2")), check=True, capture_output=True
    )
    whole_run = time.monotonic() - started
    expected, rng, runs = files_of(tmp_path / "calm"), random.Random(1), []
    try:
        for attempt in range(6):
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
            runs.append(subprocess.Popen(line, **quiet))
            time.sleep(whole_run * rng.uniform(0.2, 1.0))
            runs[-1].kill()
            runs[-1].wait()
            for path in out.glob("hdf5*/c/*.hdf5"):
                assert expected[str(path.relative_to(out))] == hashlib.sha256(path.read_bytes()).hexdigest(), attempt
        subprocess.run(line, check=True, capture_output=True)
    finally:
        for run in runs:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(run.pid, signal.SIGKILL)
    assert files_of(out) == expected
    assert not list(out.rglob("*.tmp"))


def test_workers_end_with_their_parent(text, vocab, tmp_path):
    write_text(text, 3000)
    run = subprocess.Popen(
        command(*words(text, vocab, tmp_path / "out", "--num_processes", "2")),
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    until(lambda: len(running_in_group(run.pid)) >= 3)
    run.kill()
    run.wait()
    until(lambda: not running_in_group(run.pid))


def running_in_group(group: int) -> list[int]:
    """Processes of a process group that have not ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, its_group = path.read_text().rpartition(") ")[2].split()[:3]
            if int(its_group) == group and state != "Z":
                found.append(int(path.parent.name))
    return found


def until(condition, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.05)


@pytest.mark.mpi
def test_under_mpirun_the_ranks_share_the_work(mpirun, text, vocab, tmp_path):
    pytest.importorskip("mpi4py")
    prepare.main(words(text, vocab, tmp_path / "one"))
    line = [mpirun, "-n", "2", "--oversubscribe", *command(*words(text, vocab, tmp_path / "two"))]
    subprocess.run(line, check=True, timeout=120)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")


@pytest.mark.mpi
def test_under_mpirun_a_bad_request_ends_all_ranks(mpirun, vocab, tmp_path):
    pytest.importorskip("mpi4py")
    (tmp_path / "empty.txt").write_text("\n\n")
    line = [mpirun, "-n", "2", "--oversubscribe", *command(*words(tmp_path / "empty.txt", vocab, tmp_path / "out"))]
    ended = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2 and "no text in it" in ended.stderr


def status(arguments: list[str]) -> tuple[int, str]:
    ended = subprocess.run(command(*arguments), capture_output=True, text=True, timeout=120)
    return ended.returncode, ended.stderr


@pytest.mark.parametrize("length", [5, 7, 8])
def test_rows_that_hold_almost_nothing_are_said(length, text, vocab, tmp_path, capsys):
    arguments = words(text, vocab, tmp_path / "out", "--max_seq_length", str(length), "--max_predictions_per_seq", "1")
    parser = argparse.ArgumentParser()
    prepare.all_options(parser)
    request_options.request_of(parser.parse_args(arguments))
    assert ("almost nothing of a text fits" in capsys.readouterr().out) == (length < 8)


def test_all_faults_of_a_request_are_told_at_once(vocab, tmp_path):
    arguments = words(tmp_path / "absent.txt", tmp_path / "novocab.txt", tmp_path / "out", "--dupe_factor", "0")
    code, said = status([*arguments, "--max_seq_length", "64", "--masked_lm_prob", "1.5"])
    assert code == 2 and not (tmp_path / "out").exists()
    for part in ("absent.txt", "novocab.txt", "--dupe_factor 0", "--masked_lm_prob 1.5", "one of each a phase"):
        assert part in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("verfy x", "unknown step verfy: one of all, download"),
        ("download --url a.txt --output_dir x", "--url 'a.txt': an address is http:// or https://"),
        ("vocab --dataset x --vocab_file x --vocab_size -1", "--vocab_size -1: more than the 5 special tokens"),
        ("--input . --vocab_file v --output_dir x --corpus ..", "--corpus '..': a name of a folder, without /"),
        (f"--input . --vocab_file v --output_dir x --corpus {'c' * 201}", "c: at most 200 bytes"),
        ("--input . --vocab_file v --output_dir x --encoding undefined", "--encoding undefined: no such encoding"),
    ],
)
def test_a_step_that_cannot_run(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert exits.run(prepare.main, arguments.split()) == 2
    assert said in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_output_inside_of_the_input_is_refused(text, vocab, capsys):
    """Its files would be read as text by the run that goes on."""
    for step in ([], ["shard"]):
        assert exits.run(prepare.main, [*step, *words(text.parent, vocab, text.parent / "out")]) == 2
        assert "out: inside of --input" in capsys.readouterr().err
    extract = ["extract", "--input", str(text.parent), "--output_dir", str(text.parent / "out")]
    assert exits.run(prepare.main, extract) == 2
    assert not (text.parent / "out").exists()


def test_a_vocabulary_smaller_than_the_alphabet_is_refused(text, tmp_path, capsys):
    pytest.importorskip("tokenizers")
    arguments = ["vocab", "--input", str(text), "--vocab_file", str(tmp_path / "v.txt"), "--vocab_size"]
    assert exits.run(prepare.main, [*arguments, "12"]) == 2
    said = capsys.readouterr().err
    assert "--vocab_size 12: the characters of the text" in said and not (tmp_path / "v.txt").exists()
    least = said.split(" are ")[1].split(" tokens")[0]
    assert exits.run(prepare.main, [*arguments, least]) == 0
    assert len((tmp_path / "v.txt").read_text().split()) == int(least)
    assert "asked for" not in capsys.readouterr().out


def test_a_vocabulary_of_fewer_tokens_than_asked_for_says_so(tmp_path, capsys):
    """It has every word then."""
    tokens = learn("the sea was calm\n" * 20, tmp_path, "--vocab_size", "500")
    assert len(tokens) < 500 and {"the", "sea", "was", "calm"} <= set(tokens)
    assert f"{len(tokens)} tokens, of 500 asked for: the text has no more" in capsys.readouterr().out


def test_one_phase_alone_is_shown(text, vocab, tmp_path, capsys):
    """The example is a command that runs; its numbers are the reference's."""
    line = ["--input", str(text), "--vocab_file", str(vocab), "--output_dir", str(tmp_path / "out"), "--corpus", "c"]
    alone = [*line, "--num_processes", "1", "--max_seq_length", "128"]
    assert exits.run(prepare.main, alone) == 2
    example = capsys.readouterr().err.rpartition("such as ")[2].split()
    assert example == ["--max_seq_length", "128", "--max_predictions_per_seq", "20"]
    assert exits.run(prepare.main, [*alone, *example]) == 0


def test_same_text_same_vocabulary(tmp_path):
    """Each in a process of its own, whose hashes differ; hundreds of pairs of pieces are equally common."""
    pytest.importorskip("tokenizers")
    rng = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz" + "".join(map(chr, range(0xA000, 0xA000 + 1100)))  # syllables of Yi
    made = ["".join(rng.choices(letters, k=rng.randint(1, 9))) for _ in range(3000)]
    (tmp_path / "text.txt").write_text(
        "\n".join(" ".join(rng.choices(made, k=12)) for _ in range(1500)), encoding="utf-8"
    )
    found = []
    for name in "abc":
        path = tmp_path / f"{name}.txt"
        line = ["vocab", "--input", str(tmp_path / "text.txt"), "--vocab_size", "4000", "--vocab_file", str(path)]
        subprocess.run(command(*line), check=True, capture_output=True)
        found.append(path.read_text(encoding="utf-8").split("\n")[:-1])
    assert found[0] == found[1] == found[2]
    assert len(found[0]) == len(set(found[0])) == 4000
    characters = set((tmp_path / "text.txt").read_text(encoding="utf-8")) - {" ", "\n"}
    assert len(characters & set(found[0])) > 1100


def learn(text: str, folder: Path, *more: str) -> list[str]:
    (folder / "learn.txt").write_text(text, encoding="utf-8")
    line = ["vocab", "--input", str(folder / "learn.txt"), "--vocab_file", str(folder / "learned" / "vocab.txt"), *more]
    assert prepare.main(line) == 0
    return (folder / "learned" / "vocab.txt").read_text(encoding="utf-8").split("\n")[:-1]


SCRIPT_TEXTS = {
    "Greek capitals": "Ο ΔΡΟΜΟΣ ΕΙΝΑΙ ΚΑΛΟΣ. Ο ΝΟΜΟΣ ΤΗΣ ΠΟΛΗΣ ΙΣΧΥΕΙ.",
    "Greek capitals with accents": "Ὁ ΛΌΓΟΣ ΤΟΎ ΘΕΟΎ. Πού πᾷς;",
    "Turkish": "İSTANBUL'DA IŞIK, ağaç ve İğne.",
    "German": "STRASSE, Straße, ẞ und Äpfel.",
    "Hindi": "कुत्ता घर में है। यहाँ पानी मिलता है।",
    "Japanese": "パンダはかぎを持っている。がっこうへ行きます。",
    "Thai": "ภาษาไทยไม่มีจุด และวรรณยุกต์",
    "Arabic with marks": "السَّلامُ عَلَيْكُمْ. أهلًا",
    "Korean": "한국어 문장입니다. 또 하나.",
    "Vietnamese": "Tiếng Việt có dấu. Đường phố.",
    "Armenian": "Բարեւ ձեզ։ ՄԵԾ ՏԱՌԵՐ։",
    "Cherokee, Georgian, Deseret": "ᎣᏏᏲ ꭳꮟᏺ ᲡᲐᲥᲐᲠᲗᲕᲔᲚᲝ საქართველო 𐐔𐐯𐑅𐐨𐑉𐐯𐐻",
    "ligatures, full width, mathematics": "ﬁle Ｆｕｌｌ ① 𝐀𝐁 K Å ℵ",
}


@pytest.mark.parametrize("more", [(), ("--strip_accents", "0"), ("--do_lower_case", "0")])
@pytest.mark.parametrize("name", SCRIPT_TEXTS)
def test_a_learned_vocabulary_fits_its_text(name, more, tmp_path):
    """No [UNK], neither in the data nor by the tokenizer that a checkpoint carries, and both give the same ids."""
    transformers = pytest.importorskip("transformers")
    text = SCRIPT_TEXTS[name]
    tokens = learn(f"{text}\n" * 20, tmp_path, "--vocab_size", "300", *more)
    options = dict(zip(more[::2], more[1::2], strict=True))
    strip = options.get("--strip_accents")
    lower = options.get("--do_lower_case") != "0"
    file = VocabularyFile(tmp_path / "learned" / "vocab.txt", lower, None if strip is None else strip == "1")
    (tmp_path / "data").mkdir()
    pipeline._write_vocabulary(tmp_path / "data", file)
    ids = Tokenizer(file.read()).encode(text).ids.tolist()
    assert tokens.index("[UNK]") not in ids
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "data")
    assert theirs(text, add_special_tokens=False)["input_ids"] == ids


def test_an_alphabet_of_thousands(tmp_path, capsys):
    """Chinese has more common characters than a thousand; the rarest of a text are left out, and said."""
    common = [chr(0x4E00 + number) for number in range(3000)]
    text = "".join(common) * 20 + "".join(chr(0x9000 + number) for number in range(7))
    tokens = learn(text, tmp_path, "--vocab_size", "5000")
    assert set(tokens) - set(SPECIAL_TOKENS) == set(common[:2999])  # 99.95 % of the text
    said = capsys.readouterr().out
    assert "note: 8 rare characters, 0.045% of the text, are left out and will be [UNK], the commonest: 妷 退" in said


def test_few_rare_characters_are_taken_where_there_is_room(tmp_path):
    text = "ab cd " * 5000 + "é ж Ω 力"
    assert {"e", "ж", "ω", "力"} <= set(learn(text, tmp_path, "--vocab_size", "60"))
    assert not {"ж", "ω", "力"} & set(learn(text, tmp_path, "--vocab_size", "16"))


def test_a_vocabulary_is_never_written_over_its_input(tmp_path, capsys):
    for number in range(2):
        (tmp_path / f"{number}.txt").write_text("some text\n")
    for inputs, out in (("0.txt", "0.txt"), ("0.txt 1.txt", "1.txt"), (".", "1.txt"), (".", "new/vocab.txt")):
        line = ["vocab", "--input", *(str(tmp_path / name) for name in inputs.split())]
        assert exits.run(prepare.main, [*line, "--vocab_file", str(tmp_path / out)]) == 2
        assert f"--vocab_file {tmp_path / out}: inside of --input" in capsys.readouterr().err
    (tmp_path / "link.txt").symlink_to(tmp_path / "0.txt")
    line = ["vocab", "--input", str(tmp_path / "0.txt"), "--vocab_file", str(tmp_path / "link.txt")]
    assert exits.run(prepare.main, line) == 2
    assert (tmp_path / "0.txt").read_text() == (tmp_path / "1.txt").read_text() == "some text\n"


@pytest.mark.parametrize("seed", ["-1", str(2**32)])
def test_seeds_that_no_generator_takes(seed, text, vocab, tmp_path, capsys):
    assert exits.run(prepare.main, words(text, vocab, tmp_path / "out", "--random_seed", seed)) == 2
    assert f"--random_seed {seed}: from 0 to 4294967295" in capsys.readouterr().err
    line = ["pack", "--input_dir", str(tmp_path), "--output_dir", str(tmp_path / "out"), "--random_seed", seed]
    assert exits.run(prepare.main, line) == 2
    assert f"--random_seed {seed}: from 0 to 4294967295" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("number", ["0", "-1", "5000", "1" + "0" * 30])
@pytest.mark.parametrize("step", [["verify", "."], ["pack", "--input_dir", ".", "--output_dir", "out"], None])
def test_numbers_of_processes_that_are_none_are_refused_by_every_step(text, vocab, tmp_path, capsys, step, number):
    line = step or words(text, vocab, tmp_path / "out")
    assert exits.run(prepare.main, [*line, "--num_processes", number]) == 2
    assert capsys.readouterr().err == f"error: --num_processes {number}: from 1 to 4096\n"


def test_a_language_that_is_not_known(text, vocab, tmp_path, capsys):
    arguments = words(text, vocab, tmp_path / "out", "--language", "xx")
    assert exits.run(prepare.main, [*arguments, "--sentences", "pysbd"]) == 2  # not installed, or not known to it
    assert not (tmp_path / "out").exists()
    assert exits.run(prepare.main, [*arguments, "--sentences", "rules"]) == 0
    assert capsys.readouterr().out.count("--language xx: no abbreviations known for it (known: en, de") == 1


def test_a_data_set_without_a_name_is_wikipedia():
    parser = argparse.ArgumentParser()
    prepare_options.add_text_options(parser)

    def read(line: str):
        return prepare_options.dataset_of(parser.parse_args(line.split()))

    assert (read("--dataset").name, read("--dataset").config) == ("wikimedia/wikipedia", "20231101.en")
    assert read("--dataset --language de").config == "20231101.de"
    assert read("--dataset wikimedia/wikipedia --dataset_config 20231101.fr").config == "20231101.fr"
    assert read("--dataset other/text").config is None and read("") is None


def test_a_folder_that_no_run_made_is_left_alone(text, vocab, tmp_path, capsys):
    own = tmp_path / "out" / "tokens_c" / "thesis.txt"
    own.parent.mkdir(parents=True)
    own.write_text("years of work")
    assert exits.run(prepare.main, words(text, vocab, tmp_path / "out")) == 2
    assert own.read_text() == "years of work" and "tokens_c: holds something else" in capsys.readouterr().err


def test_text_too_small(vocab, tmp_path):
    (tmp_path / "text.txt").write_text("\n \n")
    code, said = status(words(tmp_path / "text.txt", vocab, tmp_path / "out"))
    assert code == 2 and "no text in it" in said and not list((tmp_path / "out").glob("hdf5*"))


def test_a_corpus_too_small_for_one_sequence(vocab, tmp_path, capsys):
    (tmp_path / "text.txt").write_text("w1 w2 w3.\n")
    assert exits.run(prepare.main, words(tmp_path / "text.txt", vocab, tmp_path / "out")) == 2
    assert "4 tokens in all, too few for one sequence of 128: give more text" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("hdf5*"))


def test_one_document_of_one_sentence(vocab, tmp_path):
    (tmp_path / "text.txt").write_text("w1 w2 w3 " * 50 + ".\n\n\n\n")
    with pytest.raises(BadRequest, match="all text is one document.*--allow one_document"):
        prepare.main(words(tmp_path / "text.txt", vocab, tmp_path / "out"))
    prepare.main(words(tmp_path / "text.txt", vocab, tmp_path / "out", "--allow", "one_document"))
    arrays, attributes = read(folder(tmp_path / "out", 64) / "c_training_0.hdf5")
    assert len(arrays["input_ids"]) >= 5 and attributes["covered_tokens"] > 0.95 * attributes["text_tokens"]
    assert not list(folder(tmp_path / "out", 64).glob("*test*"))  # nothing to hold out


def test_more_shards_than_documents(vocab, tmp_path, capsys):
    write_text(tmp_path / "text.txt", 9)
    prepare.main(words(tmp_path / "text.txt", vocab, tmp_path / "out", "--num_shards", "64"))
    assert "--num_shards 64: 4 made" in capsys.readouterr().out
    made = sorted(path.name for path in folder(tmp_path / "out", 64).glob("*.hdf5"))
    assert made == ["c_test_0.hdf5", "c_training_0.hdf5", "c_training_1.hdf5", "c_training_2.hdf5"]


@pytest.fixture
def small_disk(tmp_path):
    """A function that mounts a disk of some size in memory."""
    mounted = []

    def mount(options: str) -> Path:
        path = tmp_path / f"disk{len(mounted)}"
        path.mkdir()
        if (
            os.geteuid()
            or subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], check=False).returncode
        ):
            pytest.skip("mounting a small disk needs root")
        mounted.append(path)
        return path

    yield mount
    for path in mounted:
        subprocess.run(["umount", path], check=True)


def test_a_disk_too_small_is_refused_before_writing(text, vocab, small_disk):
    write_text(text, 4000)
    disk = small_disk("size=1m")
    code, said = status(words(text, vocab, disk / "out"))
    assert code == 2 and "need about" in said and "are free" in said
    assert not list(disk.rglob("*.hdf5"))


def test_a_disk_that_fills_up(text, vocab, small_disk, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "BYTES_PER_POSITION", 0.0)  # the estimate did not see it coming
    monkeypatch.setattr(pipeline, "TOKEN_BYTES", 0.0)
    write_text(text, 2000)
    disk = small_disk("size=1m")
    with pytest.raises(BadRequest, match="No space left on device; finished files stay"):
        prepare.main(words(text, vocab, disk / "out"))
    assert not list(disk.rglob("*.tmp"))
    for path in disk.rglob("*.hdf5"):
        read(path)  # what has its name is whole
    subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
    prepare.main(words(text, vocab, disk / "out"))
    prepare.main(words(text, vocab, tmp_path / "calm"))
    assert files_of(disk / "out") == files_of(tmp_path / "calm")


def test_a_disk_that_fills_up_at_any_byte(small_disk):
    """Also at the very last ones, which HDF5 writes when the file is closed."""
    disk = small_disk("size=8k")
    ids = np.random.default_rng(0).integers(0, 30_000, (1000, 64)).astype(np.int32)
    arrays = {f"ids{number}": ids for number in range(6)}
    attributes, told = {f"attribute{number}": number for number in range(20)}, set()
    for kilobytes in range(8, 1200, 4):
        subprocess.run(["mount", "-o", f"remount,size={kilobytes}k", disk], check=True)
        try:
            write_rows(disk / "x.hdf5", len(ids), 100, iter([arrays]), attributes)
            break
        except (OSError, RuntimeError) as error:
            told.add(type(error))
            assert isinstance(prepare._explained(error), BadRequest), error
            assert not list(disk.iterdir())
    assert OSError in told
    assert (read(disk / "x.hdf5")[0]["ids5"] == ids).all()


def test_a_read_only_output_folder(text, vocab, small_disk):
    code, said = status(words(text, vocab, small_disk("size=1m,ro") / "out"))
    assert code == 2 and "cannot read or write" in said and "Traceback" not in said


def test_an_output_folder_that_is_a_file(text, vocab, tmp_path):
    (tmp_path / "out").write_text("")
    code, said = status(words(text, vocab, tmp_path / "out"))
    assert code == 2 and "cannot read or write" in said


def test_books_through_the_entry_of_the_reference(vocab, tmp_path):
    script = Path(prepare.__file__).with_name("create_datasets_from_start.sh")
    (tmp_path / "books").mkdir()
    for number in range(6):
        write_text(tmp_path / "books" / f"{number}.txt", 5, seed=number)
    dump = "".join(
        f"<page><title>{n}</title><ns>0</ns><revision><text>w{n} w1 w2. w3 w4.</text></revision></page>"
        for n in range(9)
    )
    (tmp_path / "dump.xml").write_text(f"<mediawiki>{dump}</mediawiki>")
    environment = os.environ | {
        "BERT_PREP_WORKING_DIR": str(tmp_path / "work"),
        "WIKI_DUMP": str(tmp_path / "dump.xml"),
        "VOCAB_FILE": str(vocab),
        "PYTHON": sys.executable,
        "NUM_PROCESSES": "1",
    }
    ended = subprocess.run(["bash", script, "wiki_books"], env=environment, capture_output=True, text=True)
    assert ended.returncode == 2 and "BookCorpus cannot be downloaded any more" in ended.stderr
    environment["BOOKS_DIR"] = str(tmp_path / "books")
    ended = subprocess.run(["bash", script, "wiki_books"], env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    name = "hdf5_lower_case_1_seq_len_512_max_pred_80_masked_lm_prob_0.15_random_seed_12345_dupe_factor_5"
    arrays, attributes = read(
        tmp_path / "work" / name / "books_wiki_en_corpus" / "books_wiki_en_corpus_training_0.hdf5"
    )
    assert attributes["documents"] == 13 and arrays["input_ids"].shape[1] == 512


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["--output_dir", ""], "argument --output_dir: empty, or no name of a file"),
        (["--output_dir", "o\nut"], "argument --output_dir: empty, or no name of a file in one line"),
        (["--output_dir", " "], "argument --output_dir: empty"),
        (["--vocab_file", ""], "argument --vocab_file: empty"),
        (["--max_seq_length", str(10**400)], "at most 65536"),
    ],
)
def test_words_that_name_no_place_or_no_length_are_refused(tmp_path, monkeypatch, capsys, words, fault):
    """An empty folder would be the one at hand."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("One sentence. Another one.\n")
    vocab = "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "one"])
    (tmp_path / "vocab.txt").write_text(vocab + "\n")
    given = [
        "--input",
        "text.txt",
        "--vocab_file",
        "vocab.txt",
        "--output_dir",
        "out",
        "--max_predictions_per_seq",
        "5",
    ]
    assert exits.run(prepare.main, [*given, "--max_seq_length", "32", *words]) == 2
    assert fault in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text.txt", "vocab.txt"]


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["--vocab_size", str(10**400)], "at most 10000000"),
        (["--vocab_file", "folder"], "a folder where a file is due"),
        (["--vocab_file", "pipe"], "a pipe, socket or device where a file is due"),
    ],
)
def test_a_vocabulary_that_cannot_be_written_or_learned_is_refused_first(tmp_path, monkeypatch, capsys, words, fault):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("One sentence. Another one.\n")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    given = ["vocab", "--input", "text.txt", "--vocab_file", "vocab.txt", "--vocab_size", "100"]
    assert exits.run(prepare.main, [*given, *words]) == 2
    assert fault in capsys.readouterr().err and not (tmp_path / "vocab.txt").exists()


def test_a_step_imports_what_it_needs_alone():
    """A start without HDF5, numpy and ssl takes half the time; workers of `extract` start so, too."""
    program = (
        "import sys; from pretraining.data import extract, prepare;"
        " print(sorted({'h5py', 'numpy', 'ssl', 'tqdm', 'mwparserfromhell'} & set(sys.modules)))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(prepare.__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.stdout == "[]\n", ended.stderr
