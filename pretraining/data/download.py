"""Downloads that end well: resumed, tried again, checked by size and checksum, under their name only when complete."""

import hashlib
import re
import shutil
import ssl
import time
import urllib.error
import urllib.request
from email.utils import formatdate
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.parse import urlsplit

from central.files import replace_synced, size_in_words
from central.runtime.exits import BadRequest
from pretraining.data.progress import BYTES, Progress

BLOCK_BYTES = 1 << 20
TIMEOUT = 60.0  # s without a byte
TRIES = 6  # in a row without a byte
FIRST_WAIT = 1.0  # s before the second try; doubled each time
KEPT_FREE = 1 << 30  # bytes of the disk that a download without an end must leave
WIKIPEDIA = "https://dumps.wikimedia.org/{language}wiki/latest/{language}wiki-latest-"
DUMP_NAME = "pages-articles.xml.bz2"


def download(url: str, target: Path, checksum: str | None = None, first_wait: float = FIRST_WAIT) -> None:
    """Fetch `url` into `target`, unless it is there; `checksum` is NAME:HEX, such as sha256:07ec...

    What is there of an interrupted download is kept beside as `<target>.part` and continued.
    """
    algorithm, expected = _parse(checksum)
    if target.exists():
        _check(target, algorithm, expected)
        print(f"{target}: there already")
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    failures = 0  # since something last came
    fault: OSError | HTTPException
    while True:
        before = _size(part)
        try:
            _fetch(url, part)
            break
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code not in (408, 429):
                raise BadRequest(f"{url}: the server says {error.code} {error.reason}") from error
            fault = error
        except (urllib.error.URLError, HTTPException, ConnectionError, TimeoutError, ssl.SSLError) as error:
            fault = error
        failures = 1 if _size(part) > before else failures + 1
        if failures == TRIES:
            raise BadRequest(f"{url}: given up after {TRIES} tries ({fault}); run the same command again to go on")
        wait = first_wait * 2 ** (failures - 1)
        print(f"{url}: {fault}; again in {wait:.0f} s from byte {_size(part)}")
        time.sleep(wait)
    try:
        _check(part, algorithm, expected)
    except BadRequest:
        part.unlink()
        raise
    replace_synced(part, target)


def file_name(url: str) -> str:
    """The name of the file at the end of an address; BadRequest for what is none of a file on a server."""
    try:
        parts = urlsplit(url)
        is_address = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # of the port, or of a host in brackets
        is_address = False
    if not is_address or re.search(r"[\s\0]", url) or not url.isascii():
        raise BadRequest(
            f"--url {url!r}: an address is http:// or https://, a host and a path, without blanks and in ASCII; a file "
            "that is here is read with --input"
        )
    name = parts.path.rpartition("/")[2]
    if name in ("", ".", ".."):
        raise BadRequest(f"--url {url}: no file name at its end")
    return name


def wikipedia_dump(language: str) -> tuple[str, str | None]:
    """(address of the newest dump of a Wikipedia, its checksum if the server has it); BadRequest for no code."""
    if not re.fullmatch(r"[a-z]{2,}(?:[-_][a-z]+)*", language):
        raise BadRequest(f"--wikipedia {language!r}: the code of a language, such as en, simple or zh-min-nan")
    base = WIKIPEDIA.format(language=language.replace("-", "_"))
    try:
        with urllib.request.urlopen(base + "sha1sums.txt", timeout=TIMEOUT) as answer:
            lines = answer.read().decode().splitlines()
    except (urllib.error.URLError, HTTPException, OSError) as error:
        print(f"{base}sha1sums.txt: {error}; the download is checked by its size only")
        return base + DUMP_NAME, None
    sums = [line.split()[0] for line in lines if line.endswith("-" + DUMP_NAME)]
    return base + DUMP_NAME, f"sha1:{sums[0]}" if sums else None


def _fetch(url: str, part: Path) -> None:
    """Add to `part` what is missing; ConnectionError when the server stopped before the end."""
    have = _size(part)
    request = urllib.request.Request(url)
    if have:  # go on, unless the server's file is newer than what we have: two halves of two files are none
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Unmodified-Since", formatdate(part.stat().st_mtime, usegmt=True))
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and _total_of_range(error.headers.get("Content-Range", "")) == have:
            return  # nothing is missing
        if error.code in (412, 416):  # newer there, or longer here
            part.unlink(missing_ok=True)
            raise ConnectionError("the file changed on the server") from error
        raise
    with answer:
        if have and answer.status != 206:
            have = 0  # a server that cannot resume sends it all again
        total = _total(answer, have)
        _check_space(part, total - have)
        progress = Progress(part.name.removesuffix(".part"), total, BYTES, before=have)
        with open(part, "ab" if have else "wb") as file:
            while block := answer.read(BLOCK_BYTES):
                file.write(block)
                progress.update(file.tell())
                if not total:
                    _check_end(part)
        progress.close()
    if total and _size(part) != total:
        raise ConnectionError(f"the server stopped at byte {_size(part)} of {total}")


def _total(answer: HTTPResponse, have: int) -> int:
    """Bytes of the whole file, 0 when the server does not say."""
    length = answer.headers.get("Content-Length")
    return have + int(length) if length else 0


def _total_of_range(content_range: str) -> int:
    """The total in "bytes */1234", -1 when there is none."""
    total = content_range.rpartition("/")[2]
    return int(total) if total.isdigit() else -1


def _check_space(part: Path, needed: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if needed > free:
        raise BadRequest(f"{part.parent}: {size_in_words(needed)} still to download, {size_in_words(free)} free")


def _check_end(part: Path) -> None:
    """What comes without a size may never end; a full disk would harm others, too."""
    if (free := shutil.disk_usage(part.parent).free) < KEPT_FREE:
        raise BadRequest(
            f"{part}: the server says no size, {size_in_words(_size(part))} came and {size_in_words(free)} are free: "
            "download to a larger disk"
        )


def _parse(checksum: str | None) -> tuple[str | None, str | None]:
    if checksum is None:
        return None, None
    algorithm, _, expected = checksum.partition(":")
    if algorithm not in ("sha256", "sha1", "md5") or len(expected) != 2 * hashlib.new(algorithm).digest_size:
        raise BadRequest(f"--checksum {checksum}: sha256:HEX, sha1:HEX or md5:HEX with all its digits")
    return algorithm, expected.lower()


def _check(path: Path, algorithm: str | None, expected: str | None) -> None:
    if algorithm is None:
        return
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, algorithm).hexdigest()
    if found != expected:
        raise BadRequest(f"{path}: {algorithm} is {found}, not {expected}; download it again")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
