"""Fine-tune and evaluate a model on a GLUE task, or on any single sentences or pairs with labels.

python run_glue.py --model_name_or_path base --task_name mrpc --do_train --do_eval --output_dir out/mrpc
python run_glue.py --model_name_or_path FOLDER --train_file train.tsv --validation_file dev.tsv --task_name mrpc ...
mpirun -n 2 python run_glue.py ...
"""

import sys
from functools import partial
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[4]), str(Path(__file__).resolve().parent)]  # python -P has none
from central.runtime import environment, rank

environment.apply_or_exit()  # before torch is imported
rank.export(rank.from_environment())  # before transformers looks for other ranks

from text_classification import TextClassification

from central.finetuning import script
from central.runtime.exits import run

main = partial(script.main, TextClassification)

if __name__ == "__main__":
    sys.exit(run(main))
