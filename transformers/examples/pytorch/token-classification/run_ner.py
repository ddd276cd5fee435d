"""Fine-tune and evaluate a model that labels the words of a sentence, such as the names in it.

python run_ner.py --model_name_or_path base --train_file train.jsonl --validation_file dev.jsonl --do_train --do_eval \
    --output_dir out/ner
A row has lists `tokens` and `ner_tags`: {"tokens": ["Anna", "sees", "Rome"], "ner_tags": ["B-PER", "O", "B-LOC"]}.
"""

import sys
from functools import partial
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[4]), str(Path(__file__).resolve().parent)]  # python -P has none
from central.runtime import environment, rank

environment.apply_or_exit()  # before torch is imported
rank.export(rank.from_environment())  # before transformers looks for other ranks

from token_classification import TokenClassification

from central.finetuning import script
from central.runtime.exits import run

main = partial(script.main, TokenClassification)

if __name__ == "__main__":
    sys.exit(run(main))
