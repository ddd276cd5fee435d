"""The peer of the fine-tuning benchmarks: Hugging Face's own Trainer in the settings of its example scripts.

    python benchmarks/finetuning_peer.py --task mrpc --padding max --model_name_or_path FOLDER --train_file F ...

Reads, tokenises and scores with the functions of this project, so that the two sides differ in training alone. Batches
are random and padded to the maximum (the example scripts' default) or to their longest example (`--padding dynamic`).
"""

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "transformers" / "examples" / "pytorch"
sys.path[:0] = [str(ROOT), str(EXAMPLES / "text-classification"), str(EXAMPLES / "question-answering")]
import glue_tasks
import qa_examples
import qa_postprocess
import torch
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)

from central.finetuning.features import Features, Ragged
from central.finetuning.tables import read_table


class Rows(torch.utils.data.Dataset):
    """Features as the dictionaries of lists that Hugging Face's collators take."""

    def __init__(self, features: Features, tokenizer=None, max_length: int | None = None):
        rows = [{k: v.tolist() for k, v in features[i].items()} for i in range(len(features))]
        rows = [{**row, "attention_mask": [1] * len(row["input_ids"])} for row in rows]
        if max_length is not None:
            padded = tokenizer.pad(
                {k: [row[k] for row in rows] for k in TOKENS}, padding="max_length", max_length=max_length
            )
            rows = [{**row, **{k: padded[k][i] for k in TOKENS}} for i, row in enumerate(rows)]
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return self.rows[i]


TOKENS = ("input_ids", "token_type_ids", "attention_mask")


def mrpc(args, tokenizer):
    """Model, features of the training file and (--do_eval) of the validation file, and the metrics of the latter."""
    task, features = glue_tasks.TASKS["mrpc"], []
    limits = {args.train_file: args.max_train_samples, args.validation_file: args.max_eval_samples}
    for file in [args.train_file] + [args.validation_file] * args.do_eval:
        table = read_table(file).head(limits[file])
        texts = [glue_tasks.texts_of(table, names) for names in (task.sentence1, task.sentence2)]
        encoded = tokenizer(*texts, truncation=True, max_length=args.max_seq_length, return_attention_mask=False)
        labels = glue_tasks.numbered_labels(table, task)
        features.append(Features({**{k: Ragged.of(v) for k, v in encoded.items()}, "labels": labels}))
    model = AutoModelForSequenceClassification.from_pretrained(args.model_name_or_path, num_labels=2)
    return model, features, lambda found: glue_tasks.scores(task, found.predictions, found.label_ids)


def squad(args, tokenizer):
    """As `mrpc`; the metrics are exact match and F1 of the questions."""
    questions, asked = qa_examples.questions_of(read_table(args.train_file))[: args.max_train_samples], []
    questions, _ = qa_examples.usable_for_training(questions)
    if args.do_eval:
        asked = qa_examples.questions_of(read_table(args.validation_file))[: args.max_eval_samples]
    window = (tokenizer, args.max_seq_length, args.doc_stride)
    features = [qa_examples.windows(each, *window, with_answers=True)[0] for each in (questions, asked) if each]
    model = AutoModelForQuestionAnswering.from_pretrained(args.model_name_or_path)

    def scores(found):
        return qa_postprocess.squad_scores(asked, qa_postprocess.answers_of(asked, features[1], *found.predictions))

    return model, features, scores


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=("mrpc", "squad"), required=True)
    parser.add_argument("--padding", choices=("max", "dynamic"), required=True)
    parser.add_argument("--model_name_or_path", required=True, help="model folder")
    parser.add_argument("--train_file", required=True)
    parser.add_argument("--validation_file", required=True)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--max_seq_length", type=int, required=True)
    parser.add_argument("--doc_stride", type=int, default=128)
    parser.add_argument("--per_device_train_batch_size", type=int, required=True)
    parser.add_argument("--learning_rate", type=float, default=5e-5)
    parser.add_argument("--num_train_epochs", type=float, default=1)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--max_train_samples", type=int)
    parser.add_argument("--max_eval_samples", type=int)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--use_cpu", action="store_true", help="also where there is a GPU")
    parser.add_argument("--do_train", action="store_true", help="always done")
    parser.add_argument("--do_eval", action="store_true")
    args = parser.parse_args()
    set_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(args.model_name_or_path)
    model, features, compute_metrics = (mrpc if args.task == "mrpc" else squad)(args, tokenizer)
    padded = args.padding == "max"
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(args.output_dir),
            per_device_train_batch_size=args.per_device_train_batch_size,
            per_device_eval_batch_size=8,
            learning_rate=args.learning_rate,
            num_train_epochs=args.num_train_epochs,
            seed=args.seed,
            bf16=args.bf16,
            use_cpu=args.use_cpu,
            logging_steps=1,
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=Rows(features[0], tokenizer, args.max_seq_length if padded else None),
        data_collator=default_data_collator if padded else DataCollatorWithPadding(tokenizer),
        compute_metrics=compute_metrics,
    )
    results = trainer.train().metrics
    if args.do_eval:
        trainer.data_collator = DataCollatorWithPadding(tokenizer)  # the same scores in less time
        results |= trainer.evaluate(Rows(features[1]))
    args.output_dir.mkdir(parents=True, exist_ok=True)
    (args.output_dir / "all_results.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
