"""The mutants, a file for each room."""
