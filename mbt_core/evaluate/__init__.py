"""Evaluation: metrics, views, subsets of modalities, prediction."""
