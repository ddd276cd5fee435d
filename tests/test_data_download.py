"""Downloads against a server on loopback that breaks off, fails, refuses ranges or sends something else."""

import hashlib
import http.server
import os
import re
import shutil
import threading
import time
import urllib.request
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime

import pytest

from central.runtime import exits
from central.runtime.exits import BadRequest
from pretraining.data import prepare
from pretraining.data.download import TRIES, download, wikipedia_dump

CONTENT = bytes(range(256)) * 4096  # 1 MiB


@dataclass
class Behaviour:
    stops_after: list[int] = field(default_factory=list)  # bytes sent by the first answers
    fails: list[int] = field(default_factory=list)  # statuses of the first answers
    ranges: bool = True
    says_size: bool = True
    modified: float = 0.0  # s since the epoch: since when the file is what it is
    requests: list[str | None] = field(default_factory=list)  # Range of each request


@pytest.fixture
def server():
    """(address, behaviour) of a small file server."""
    behaviour = Behaviour()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked = self.headers.get("Range")
            behaviour.requests.append(asked)
            if behaviour.fails:
                self.send_error(behaviour.fails.pop(0))
                return
            since = self.headers.get("If-Unmodified-Since")
            if since and parsedate_to_datetime(since).timestamp() < behaviour.modified:
                self.send_error(412)
                return
            start = int(asked.split("=")[1].rstrip("-")) if asked and behaviour.ranges else 0
            if asked and behaviour.ranges and start >= len(CONTENT):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(CONTENT)}")
                self.end_headers()
                return
            self.send_response(206 if asked and behaviour.ranges else 200)
            if behaviour.says_size:
                self.send_header("Content-Length", str(len(CONTENT) - start))
            self.end_headers()
            body = CONTENT[start:]
            if behaviour.stops_after:
                body = body[: behaviour.stops_after.pop(0)]
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}/corpus.bz2", behaviour
        running.shutdown()


def sha256(data: bytes = CONTENT) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def test_whole(server, tmp_path):
    url, behaviour = server
    target = tmp_path / "new" / "corpus.bz2"
    download(url, target, sha256())
    assert target.read_bytes() == CONTENT
    assert [path.name for path in target.parent.iterdir()] == ["corpus.bz2"]
    download(url, target, sha256())
    assert behaviour.requests == [None]  # what is there is not fetched again


def test_resumes_where_the_server_stopped(server, tmp_path):
    url, behaviour = server
    behaviour.stops_after = [100_000, 300_000]
    download(url, tmp_path / "c", sha256(), first_wait=0.01)
    assert (tmp_path / "c").read_bytes() == CONTENT
    assert behaviour.requests == [None, "bytes=100000-", "bytes=400000-"]


def test_resumes_in_a_later_run(server, tmp_path):
    url, behaviour = server
    (tmp_path / "c.part").write_bytes(CONTENT[:500_000])
    download(url, tmp_path / "c", sha256())
    assert (tmp_path / "c").read_bytes() == CONTENT and behaviour.requests == ["bytes=500000-"]


def test_a_part_that_is_whole(server, tmp_path):
    url, _ = server
    (tmp_path / "c.part").write_bytes(CONTENT)
    download(url, tmp_path / "c", sha256())
    assert (tmp_path / "c").read_bytes() == CONTENT


def test_a_part_longer_than_the_file_begins_anew(server, tmp_path):
    url, _ = server
    (tmp_path / "c.part").write_bytes(CONTENT + b"more")
    download(url, tmp_path / "c", sha256(), first_wait=0.01)
    assert (tmp_path / "c").read_bytes() == CONTENT


def test_half_of_another_file_is_not_continued(server, tmp_path):
    url, behaviour = server
    part = tmp_path / "c.part"
    part.write_bytes(b"\0" * 500_000)
    behaviour.modified = time.time() - 3600
    os.utime(part, times=(behaviour.modified - 60, behaviour.modified - 60))
    download(url, tmp_path / "c", sha256(), first_wait=0.01)
    assert (tmp_path / "c").read_bytes() == CONTENT and behaviour.requests == ["bytes=500000-", None]


def test_patience_lasts_as_long_as_something_comes(server, tmp_path):
    url, behaviour = server
    behaviour.stops_after = [50_000] * 2 * TRIES
    download(url, tmp_path / "c", sha256(), first_wait=0.001)
    assert (tmp_path / "c").read_bytes() == CONTENT


def test_speed_is_that_of_this_run(server, tmp_path, capsys, monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))  # a second between any two looks
    (tmp_path / "c.part").write_bytes(CONTENT[:-1000])
    download(server[0], tmp_path / "c")
    speed = capsys.readouterr().err.rpartition(", ")[2]
    assert re.fullmatch(r"\d+(?:\.\d+)?B/s\]\n", speed)  # of 1000 bytes, not of the megabyte that was there


def test_a_server_without_ranges(server, tmp_path):
    url, behaviour = server
    behaviour.ranges, behaviour.stops_after = False, [100_000]
    download(url, tmp_path / "c", sha256(), first_wait=0.01)
    assert (tmp_path / "c").read_bytes() == CONTENT


def test_tries_again_after_server_errors(server, tmp_path):
    url, behaviour = server
    behaviour.fails = [503, 500, 429]
    download(url, tmp_path / "c", sha256(), first_wait=0.01)
    assert (tmp_path / "c").read_bytes() == CONTENT


def test_gives_up_at_last_and_says_how_to_go_on(server, tmp_path):
    url, behaviour = server
    behaviour.fails = [503] * 100
    with pytest.raises(BadRequest, match="given up after .* run the same command again"):
        download(url, tmp_path / "c", first_wait=0.001)
    assert not (tmp_path / "c").exists()


NO_ADDRESSES = [
    "file:///dev/zero",
    "/dev/zero",
    "https://x/a\nb",
    "ftp://x/a",
    "a.txt",
    "",
    "http:///a",
    "http://[::1/a",
]
NO_ADDRESSES += ["http://x:99999/a", "http://x:y/a", "http://x/é"]


@pytest.mark.parametrize("url", NO_ADDRESSES)
def test_what_is_no_address_of_the_web_is_refused_at_once(tmp_path, capsys, url):
    """Some were a traceback; where no host was named, half a minute went by before it was said."""
    assert exits.run(prepare.main, ["download", "--url", url, "--output_dir", str(tmp_path / "new")]) == 2
    assert capsys.readouterr().err.startswith(f"error: --url {url!r}: an address is http:// or https://, a host")
    assert list(tmp_path.iterdir()) == []


def test_what_comes_without_a_size_leaves_room_on_the_disk(server, tmp_path, monkeypatch):
    url, behaviour = server
    behaviour.says_size = False
    download(url, tmp_path / "c", sha256())
    assert (tmp_path / "c").read_bytes() == CONTENT

    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**12, 10**12, 10**8))
    with pytest.raises(BadRequest, match="says no size, .* are free"):
        download(url, tmp_path / "d")
    assert not (tmp_path / "d").exists()


def test_a_wrong_address_is_not_tried_twice(server, tmp_path):
    url, behaviour = server
    behaviour.fails = [404] * 10
    with pytest.raises(BadRequest, match="404"):
        download(url, tmp_path / "c", first_wait=0.01)
    assert len(behaviour.requests) == 1


def test_a_wrong_checksum_leaves_nothing(server, tmp_path):
    url, _ = server
    with pytest.raises(BadRequest, match="sha256 is .*, not"):
        download(url, tmp_path / "c", sha256(b"something else"))
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_but_wrong_is_said(server, tmp_path):
    url, _ = server
    (tmp_path / "c").write_bytes(b"old")
    with pytest.raises(BadRequest, match="c: sha256 is"):
        download(url, tmp_path / "c", sha256())


@pytest.mark.parametrize("checksum", ["crc:12", "sha256:12", "sha256"])
def test_a_checksum_that_is_none(checksum, tmp_path):
    with pytest.raises(BadRequest, match="--checksum"):
        download("http://127.0.0.1:1/x", tmp_path / "c", checksum)


def test_nobody_answers(tmp_path):
    with pytest.raises(BadRequest, match="given up"):
        download("http://127.0.0.1:1/x", tmp_path / "c", first_wait=0.001)


@pytest.mark.parametrize("code", ["xx../../y", "", "EN", "en/..", "e", "en wiki", "en\n"])
def test_the_code_of_a_wikipedia_is_checked_before_anything_is_asked(code, monkeypatch):
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: pytest.fail("the server was asked"))
    with pytest.raises(BadRequest, match="--wikipedia .*: the code of a language"):
        wikipedia_dump(code)
