"""Train BERT with one command: `python demo_bert.py pretraining|finetuning|check`, each with -h."""

import sys

from central.launch.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
