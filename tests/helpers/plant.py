"""Bugs, on purpose."""

import inspect
import textwrap


def plant(monkeypatch, owner, name, right, wrong):
    """Put a bug into a function: its source with one piece replaced."""
    function = getattr(owner, name)
    source = textwrap.dedent(inspect.getsource(function))
    assert right in source, f"{name} has changed; choose another place for the bug"
    found = {}
    exec(
        compile(source.replace(right, wrong), name, "exec"),
        inspect.unwrap(function).__globals__,
        found,
    )
    monkeypatch.setattr(owner, name, found[name])
