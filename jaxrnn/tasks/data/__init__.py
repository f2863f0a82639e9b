"""Readers, vocabularies and batches of the data that the tasks learn from."""
