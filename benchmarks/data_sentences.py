"""Sentences found by our rules and by ICU's, beside sentences checked by hand.

    python benchmarks/data_sentences.py FOLDER

FOLDER has a file a language (en.txt, ja.txt): a sentence a line, a blank line between paragraphs. The lines of a
paragraph are joined, by a blank where the language has blanks, and split again. Needs `pip install icu4py`.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from icu4py.breakers import SentenceBreaker

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pretraining.data.sentences import sentence_splitter

WITHOUT_BLANKS = ("ja", "zh")


def splitters(language: str) -> Iterator[tuple[str, Callable[[str], list[str]]]]:
    rules = sentence_splitter("rules", language)
    yield "rules", lambda text: rules(text).split("\n")
    yield "ICU", lambda text: list(SentenceBreaker(text, language))
    yield "ICU, its abbreviations", lambda text: list(SentenceBreaker(text, f"{language}@ss=standard"))


def ends(sentences: list[str]) -> set[int]:
    """Where sentences end, in letters and signs of the text."""
    places, total = set(), 0
    for sentence in sentences:
        total += sum(not sign.isspace() for sign in sentence)
        places.add(total)
    return places - {0, total}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--show", action="store_true", help="each wrong end")
    args = parser.parse_args()
    for path in sorted(args.folder.glob("*.txt")):
        language = path.stem
        between = "" if language in WITHOUT_BLANKS else " "
        paragraphs = [text.strip().split("\n") for text in path.read_text(encoding="utf-8").split("\n\n")]
        print(f"{language}: {sum(map(len, paragraphs))} sentences, {len(paragraphs)} paragraphs")
        for name, split in splitters(language):
            missed = invented = 0
            for sentences in paragraphs:
                found = split(between.join(sentences))
                wanted, got = ends(sentences), ends(found)
                missed, invented = missed + len(wanted - got), invented + len(got - wanted)
                if args.show and wanted != got:
                    print(f"    {' | '.join(part.strip() for part in found)}")
            print(f"  {name}: {missed} ends missed, {invented} too many")


if __name__ == "__main__":
    main()
