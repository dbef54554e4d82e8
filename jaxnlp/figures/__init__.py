"""Figures of models: functions from arrays and plain trees to matplotlib figures."""
