#!/bin/bash
# Wikipedia, from its dump to the HDF5 files of both phases, in the folders of the reference; with `wiki_books`, books too.
#
#   bash create_datasets_from_start.sh [wiki_books]
#
# Variables: BERT_PREP_WORKING_DIR (default: the current folder), WIKI_DUMP (a dump that is there already),
# VOCAB_FILE (default: that of bert-base-uncased, downloaded), BOOKS_DIR (for wiki_books: plain text, one book a file),
# NUM_PROCESSES (default: all cores). Run it again after any interruption: it goes on where it stopped.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
work="${BERT_PREP_WORKING_DIR:-$(pwd)}"
python="${PYTHON:-python3}"
to_prepare="${1:-wiki_only}"
vocab_url="https://huggingface.co/google-bert/bert-base-uncased/resolve/main/vocab.txt"
vocab_sha256="07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"

case "$to_prepare" in
wiki_only)
    corpus=wikicorpus_en
    books=()
    ;;
wiki_books)
    corpus=books_wiki_en_corpus
    if [ ! -d "${BOOKS_DIR:-}" ]; then
        echo "error: wiki_books: BookCorpus cannot be downloaded any more; set BOOKS_DIR to a folder of books," \
            "plain text, one book a file (public-domain novels do), or leave out wiki_books" >&2
        exit 2
    fi
    books=("$BOOKS_DIR" --one_document_per_file)
    ;;
*)
    echo "error: $to_prepare: nothing or wiki_books" >&2
    exit 2
    ;;
esac

prepare() { "$python" "$here/prepare.py" "$@"; }

if [ -z "${VOCAB_FILE:-}" ]; then
    prepare download --url "$vocab_url" --checksum "sha256:$vocab_sha256" --output_dir "$work/download/vocab"
    VOCAB_FILE="$work/download/vocab/vocab.txt"
fi
if [ -z "${WIKI_DUMP:-}" ]; then
    prepare download --wikipedia en --output_dir "$work/download/wikicorpus_en"
    WIKI_DUMP="$work/download/wikicorpus_en/enwiki-latest-pages-articles.xml.bz2"
fi

prepare --input "$WIKI_DUMP" "${books[@]}" \
    --vocab_file "$VOCAB_FILE" --output_dir "$work" --corpus "$corpus" \
    --max_seq_length 128 512 --max_predictions_per_seq 20 80 \
    ${NUM_PROCESSES:+--num_processes "$NUM_PROCESSES"}
