"""SQuAD 1.1 with a small pretrained BERT on the CPU: this project against Hugging Face's Trainer, padded and dynamic.

    python benchmarks/finetuning_squad.py --model FOLDER --train_file train-v1.1.json.gz --validation_file dev.json.gz
    python benchmarks/finetuning_squad.py ... --scores 3       full runs: 8,000 questions, 1 epoch, three seeds

Batch 12, S=384, doc_stride 128, 5e-5, bf16 with fp32 weights, dropout 0.1. Targets: 3 x padded, 1.8 x dynamic.
"""

from finetuning_comparison import Benchmark, main, sample_questions

if __name__ == "__main__":
    main(
        Benchmark(
            task="squad",
            script="question-answering/run_qa.py",
            script_words=("--doc_stride=128",),
            metrics=("exact_match", "f1"),
            batch_size=12,
            max_seq_length=384,
            epochs=1,
            targets={"padded": 3.0, "dynamic": 1.8, "two_ranks": 1.33},
            sample=sample_questions,
        ),
        __doc__,
    )
