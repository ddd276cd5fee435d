"""Immutable records. `dataclasses` and `typing.NamedTuple` do the same, but importing them makes `-h` twice as slow."""


class Value:
    """A record that does not change: a subclass names its fields by annotations, in order, and may give defaults."""

    def __init__(self, *in_order, **by_name):
        fields = type(self).__annotations__
        given = dict(zip(fields, in_order)) | by_name
        missing = [name for name in fields if name not in given and not hasattr(type(self), name)]
        if missing or given.keys() - fields or len(given) != len(in_order) + len(by_name):
            raise TypeError(f"{type(self).__name__} has the fields {', '.join(fields)}; given: {', '.join(given)}")
        vars(self).update(given)

    def __setattr__(self, name, value):
        raise AttributeError(f"{name}: a {type(self).__name__} does not change")

    def __eq__(self, other):
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self):
        return hash(tuple(vars(self).items()))

    def __repr__(self):
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"

    def replace(self, **changes):
        """The same record but for these fields."""
        return type(self)(**{**vars(self), **changes})
