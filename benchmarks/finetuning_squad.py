"""SQuAD 1.1 with a small pretrained BERT on the CPU: this project against Hugging Face's Trainer, padded and dynamic.

    python benchmarks/finetuning_squad.py --model FOLDER --train_file train.json --validation_file dev.json --rounds 3
    python benchmarks/finetuning_squad.py ... --seeds 42 43 44 --results squad.jsonl       8,000 questions, 1 epoch

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
            targets={"peer_padded": 3.0, "peer_dynamic": 1.8, "two_ranks": 1.33},
            sample=sample_questions,
            max_train_samples=8000,
        ),
        __doc__,
    )
