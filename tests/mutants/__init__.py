"""Mutation tests: one-line faults in jaxnlp, each of which a named test must detect.

    make mutants                                        # all of them, and a table
    python -m tests.mutants --only nn,data              # some rooms, or ids
    python -m tests.mutants --tier fast                 # those that the fast tests detect

`rooms/` has the faults as data, one file per subpackage of jaxnlp; `mutant.py` defines a fault; `runner.py` runs
them. `test_mutants.py` is a fast test that every snippet still applies, so that a refactoring that moves code updates
the fault in the same change.
"""
