"""Exit statuses, what is wrong with a request (every problem at once, with the nearest right word), and errors told."""

from collections.abc import Iterable

DONE = 0
BAD_REQUEST = 2  # the request cannot run; nothing was changed
DIVERGED = 3  # a non-finite update; the last checkpoint is good
HUNG = 124  # a rank hung, and the others ended the run; as timeout(1) has it
PREEMPTED = 85  # stopped by a signal after everything was saved
MOST_PROBLEMS = 20  # told at once of a file that is something else altogether


class BadRequest(ValueError):
    """The request cannot run. `problems` holds one line for each reason: a line end in a name is shown as \\n."""

    def __init__(self, problems: str | Iterable[str]):
        problems = (problems,) if isinstance(problems, str) else problems
        self.problems = tuple("\\n".join(problem.splitlines()) for problem in problems)
        super().__init__("\n".join(self.problems))


def no_start(folder: object) -> str:
    """The complaint about a run of phase 2 whose checkpoints were to lie in `folder`."""
    return (
        f"{folder}: no checkpoint for phase 2 to start from: run phase 1 first, or give --init_checkpoint "
        "(many servers must share the folder of --output_dir)"
    )


def rows_too_long(path: object, tokens: int, most: int) -> str:
    """The complaint about a shard of longer rows than --max_seq_length."""
    return (
        f"{path}: rows of {tokens} tokens are longer than --max_seq_length {most}: raise it, or give the folder of the "
        "other phase"
    )


def nearest(word: str, known: Iterable[str]) -> str:
    """A remedy to append to a complaint about `word`: the most similar known word, or nothing."""
    import difflib  # slow to import, and needed on the way to an error only

    begun = [
        name for name in known if word and name.startswith(word)
    ]  # --model is a beginning, not a misspelling, of --mode
    close = difflib.get_close_matches(word, begun or list(known), n=1, cutoff=0 if begun else 0.5)
    return f"; did you mean {close[0]}?" if close else ""


def first_line(error: BaseException) -> str:
    """What an error says in one line: libraries say more."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
