"""What is wrong with a request: every problem at once, each with the nearest right word."""

DONE, BAD_REQUEST, DIVERGED, PREEMPTED = 0, 2, 3, 85


class BadRequest(ValueError):
    """The request cannot run. `problems` holds one line for each reason."""

    def __init__(self, problems):
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))


def nearest(word, known) -> str:
    """A remedy to append to a complaint about `word`: the most similar known word, or nothing."""
    import difflib  # slow to import, and needed on the way to an error only

    begun = [
        name for name in known if word and name.startswith(word)
    ]  # --model is a beginning, not a misspelling, of --mode
    close = difflib.get_close_matches(word, begun or list(known), n=1, cutoff=0 if begun else 0.5)
    return f"; did you mean {close[0]}?" if close else ""
