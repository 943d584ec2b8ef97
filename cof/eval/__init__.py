"""Evaluation: tasks, methods, a resumable runner, statistics, reports."""
