"""MRPC with a small pretrained BERT on the CPU: this project against Hugging Face's Trainer, padded and dynamic.

    python benchmarks/finetuning_mrpc.py --model FOLDER --train_file train.tsv --validation_file dev.tsv --rounds 3
    python benchmarks/finetuning_mrpc.py ... --rounds 3 --sides ours two_ranks
    python benchmarks/finetuning_mrpc.py ... --seeds 42 43 44 45 46 --results mrpc.jsonl      scores of full runs

3 epochs, global batch 32, S=128, 5e-5, bf16 with fp32 weights, dropout 0.1. Targets: 2.5 x padded, 1.4 x dynamic; two
ranks of one thread at least 0.75 of one rank of two, which reads here as "ours is at most 1.33 x".
"""

from finetuning_comparison import Benchmark, main, sample_rows

if __name__ == "__main__":
    main(
        Benchmark(
            task="mrpc",
            script="text-classification/run_glue.py",
            script_words=("--task_name=mrpc",),
            metrics=("accuracy", "f1"),
            batch_size=32,
            max_seq_length=128,
            epochs=3,
            targets={"peer_padded": 2.5, "peer_dynamic": 1.4, "two_ranks": 1.33},
            sample=sample_rows,
        ),
        __doc__,
    )
