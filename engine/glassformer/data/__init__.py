"""Text, vocabularies and batches."""

from glassformer.data.batch_encoding import BatchEncoding
from glassformer.data.collate import DataCollatorWithPadding, PaddingCollator, default_collate
from glassformer.data.corpus import CorpusError, python_documentation, read_text
from glassformer.data.image_input import ImageError, read_image
from glassformer.data.images import AutoImageProcessor, ImageProcessor
from glassformer.data.loader import DataLoader, Dataset
from glassformer.data.text import NextTokenWindows, ScoringWindows
from glassformer.data.tokenizer import AutoTokenizer, Tokenizer
from glassformer.data.vocabulary import (
    ByteVocabulary,
    CharVocabulary,
    Vocabulary,
    vocabulary_from_dict,
)

__all__ = [
    "AutoImageProcessor",
    "AutoTokenizer",
    "BatchEncoding",
    "ByteVocabulary",
    "CharVocabulary",
    "CorpusError",
    "DataCollatorWithPadding",
    "DataLoader",
    "Dataset",
    "ImageError",
    "ImageProcessor",
    "NextTokenWindows",
    "PaddingCollator",
    "ScoringWindows",
    "Tokenizer",
    "Vocabulary",
    "default_collate",
    "python_documentation",
    "read_image",
    "read_text",
    "vocabulary_from_dict",
]
