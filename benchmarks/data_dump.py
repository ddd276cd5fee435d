"""A MediaWiki dump to plain text: one process and two, beside what mwparserfromhell alone takes to parse it.

    python benchmarks/data_dump.py DUMP [--megabytes 48]

The pages of the dump are repeated until it is long enough. MB are of wikitext in XML, unpacked.
"""

import argparse
import bz2
import html
import re
import sys
import tempfile
import time
from pathlib import Path

import mwparserfromhell
from data_common import PREPARE, Usage, machine, measured, told


def extract(dump: Path, processes: int) -> Usage:
    with tempfile.TemporaryDirectory() as out:
        line = [sys.executable, str(PREPARE), "extract", "--input", str(dump), "--output_dir", out]
        return measured([*line, "--num_processes", str(processes)])


def parse_all(xml: str) -> float:
    """CPU seconds of the parser alone over the whole markup."""
    texts = [html.unescape(text) for text in re.findall(r"<text[^>]*>(.*?)</text>", xml, re.DOTALL)]
    start = time.process_time()
    for text in texts:
        mwparserfromhell.parse(text).strip_code()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dump", type=Path, help="a .bz2 dump")
    parser.add_argument("--megabytes", type=float, default=48.0)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    xml = bz2.decompress(args.dump.read_bytes()).decode()
    head, body = xml[: xml.index("<page>")], xml[xml.index("<page>") : xml.rindex("</page>") + len("</page>\n")]
    repeated = head + body * max(1, round(args.megabytes * 1e6 / len(body.encode()))) + "</mediawiki>\n"
    size = len(repeated.encode()) / 1e6
    print(machine())
    print(f"{size:.1f} MB of XML: the pages of {args.dump.name}, repeated")
    with tempfile.TemporaryDirectory() as folder:
        dump = Path(folder) / "dump.xml.bz2"
        dump.write_bytes(bz2.compress(repeated.encode()))
        one, two, parser_speed, ratios = [], [], [], []
        for _ in range(args.rounds):
            alone, shared = extract(dump, 1), extract(dump, 2)
            one.append(size / alone.cpu)
            two.append(size / shared.wall)
            ratios.append(alone.wall / shared.wall)
            parser_speed.append(len(xml.encode()) / 1e6 / parse_all(xml))
    print(f"one process: {told(one, 'MB a CPU second')}")
    print(f"two processes: {told(two, 'MB a second')}; over one: {told(ratios, 'x')}")
    print(f"mwparserfromhell alone, whole markup: {told(parser_speed, 'MB a CPU second')}")


if __name__ == "__main__":
    main()
