"""Sweeps: many trainings of one experiment with some settings changed, their table and their plot."""
