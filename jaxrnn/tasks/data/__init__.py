"""Readers, vocabularies and batches of the tasks' data.

- Readers of files: `tables` (labeled texts as CSV or TSV, tagged sentences as CoNLL),
  `sentence_pairs` (TSV), `images` (a folder of pictures with captions),
  `series_tables` and `ts_files` (series of numbers), `character_texts` and
  `token_files` (texts, in memory or mapped from a file). `text_lines` reads the lines
  for them, and `file_kinds` says what a file is that is no text.
- Data of packages: `corpora`, `series_sets`.
- What is held in memory: `encoded`, `packed`, `tokens`, `series`.
- Words and characters as numbers: `vocabulary`, `tokenizers`, `characters`, `text`.
- Parts and batches: `splits`, `bucketing`, `windows`, `augment`.
"""
