"""Train BERT with one command: `python demo_bert.py pretraining|finetuning|check`, each with -h."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # Python itself does not with PYTHONSAFEPATH=1

from central.launch.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
