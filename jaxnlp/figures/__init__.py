"""Pictures of models: arrays and plain trees in, a matplotlib figure out."""
