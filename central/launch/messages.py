"""Lines for the user."""

import sys


def say(text):
    """On standard error: standard output belongs to the children, and to the commands of a dry run."""
    print(f"demo_bert: {text}", file=sys.stderr, flush=True)
