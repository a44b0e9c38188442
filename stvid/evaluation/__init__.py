"""Evaluation of trained models: metrics, intervals, calibration, temporal audit, comparison and explanations."""
