"""Fine-tune and evaluate a model on questions about paragraphs: SQuAD 1.1, SQuAD 2.0, or files of the same forms.

python run_qa.py --model_name_or_path base --dataset_name squad --do_train --do_eval --output_dir out/squad
python run_qa.py --model_name_or_path FOLDER --train_file train-v1.1.json.gz --validation_file dev-v1.1.json ...
mpirun -n 2 python run_qa.py ...
"""

import sys
from functools import partial
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[4]), str(Path(__file__).resolve().parent)]  # python -P has none
from central.runtime import environment, rank

environment.apply_or_exit()  # before torch is imported
rank.export(rank.from_environment())  # before transformers looks for other ranks

from question_answering import QuestionAnswering

from central.finetuning import script
from central.runtime.exits import run

main = partial(script.main, QuestionAnswering)

if __name__ == "__main__":
    sys.exit(run(main))
