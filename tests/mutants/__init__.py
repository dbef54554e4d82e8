"""Mutation tests: one-line faults in jaxnlp, each of which a named test must notice.

    make mutants                                        # all of them, and a table
    python -m tests.mutants --only nn,data              # some rooms, or ids
    python -m tests.mutants --tier fast                 # those that the fast tests notice

`rooms/` holds the faults as data, one file for each room of jaxnlp; `mutant.py` says what a fault is; `runner.py` runs
them. `test_mutants.py` is a fast test that every snippet still applies, so that a refactoring that moves code updates
the fault in the same change.
"""
