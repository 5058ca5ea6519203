"""Text, vocabularies and batches."""

from glassformer.data.collate import PaddingCollator, default_collate
from glassformer.data.corpus import CorpusError, python_documentation, read_text
from glassformer.data.loader import DataLoader, Dataset
from glassformer.data.text import NextTokenWindows, ScoringWindows
from glassformer.data.vocabulary import (
    ByteVocabulary,
    CharVocabulary,
    Vocabulary,
    vocabulary_from_dict,
)

__all__ = [
    "ByteVocabulary",
    "CharVocabulary",
    "CorpusError",
    "DataLoader",
    "Dataset",
    "NextTokenWindows",
    "PaddingCollator",
    "ScoringWindows",
    "Vocabulary",
    "default_collate",
    "python_documentation",
    "read_text",
    "vocabulary_from_dict",
]
