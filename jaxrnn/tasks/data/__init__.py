"""Readers, vocabularies and batches of the tasks' data."""
