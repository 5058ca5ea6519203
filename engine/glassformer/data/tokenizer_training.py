"""Learning a vocabulary from text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from glassformer.data.tokenizer import Tokenizer
from glassformer.data.tokenizer_families import FAMILIES, VERY_LARGE, TokenizerSettings
from glassformer.data.tokenizer_files import tokenizers_package
from glassformer.data.tokenizer_vocabulary import bert_template

END_OF_TEXT = "<|endoftext|>"


def train_tokenizer(
    texts: Iterable[str | Path],
    kind: Literal["bpe", "wordpiece"] = "bpe",
    *,
    vocab_size: int = 8192,
    special_tokens: Sequence[str] = (),
    min_frequency: int = 2,
    lowercase: bool = True,
    model_max_length: int | None = None,
) -> Tokenizer:
    """Return a tokenizer whose vocabulary is learned from texts.

    "bpe" is byte-pair encoding over bytes (Sennrich et al. 2016; Radford et al. 2019), for causal
    models: every text can be encoded and comes back unchanged, and `<|endoftext|>` has id 0.
    "wordpiece" (Schuster and Nakajima 2012; Devlin et al. 2019) is for masked models: words are cut
    into pieces, `[PAD] [UNK] [CLS] [SEP] [MASK]` have ids 0 to 4, a text becomes `[CLS] ... [SEP]`.

    Args:
        texts: texts, or the `pathlib.Path` of files, which are read line by line.
        kind: "bpe" or "wordpiece".
        vocab_size: how many tokens there may be, special ones included; few texts give fewer.
        special_tokens: more of them, after those above.
        min_frequency: how often a pair of tokens must occur to become one.
        lowercase: whether WordPiece ignores case and accents. BPE keeps both.
        model_max_length: to cut texts to; default: no limit.

    Raises:
        ValueError: an unknown kind, no text, or a vocabulary too small for the characters.
    """
    if kind not in ("bpe", "wordpiece"):
        raise ValueError(f"kind must be 'bpe' or 'wordpiece', got {kind!r}")
    if isinstance(texts, (str, Path)):
        raise ValueError(
            f"texts must be a list of texts or paths, got one {type(texts).__name__}; put it in []"
        )
    package = tokenizers_package()
    settings = TokenizerSettings(
        extra_special_tokens=list(special_tokens), model_max_length=model_max_length or VERY_LARGE
    )
    if kind == "bpe":
        settings.special_tokens = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT}
        backend = _byte_level(package)
        trainer = package.trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=min_frequency,
            special_tokens=[END_OF_TEXT, *special_tokens],
            initial_alphabet=sorted(package.pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        backend.train_from_iterator(_pieces(texts), trainer)
    else:
        settings.special_tokens = dict(FAMILIES["bert"].special_tokens)
        settings.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
        specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *special_tokens]
        vocabulary = _learn_pieces(list(texts), specials, vocab_size, min_frequency, lowercase)
        backend = _wordpiece(package, vocabulary, lowercase)
        backend.add_special_tokens(specials)
        backend.post_processor = bert_template(backend, "[CLS]", "[SEP]")
    _check_size(backend, vocab_size, kind)
    return Tokenizer(backend, settings)


def _learn_pieces(
    texts: Sequence[str | Path], specials: list[str], size: int, min_frequency: int, lowercase: bool
) -> dict[str, int]:
    """Return the vocabulary of WordPiece: the same for the same texts.

    The package numbers the pieces `##x` of one character as it meets them in a hash table, in
    another order each time, and ties between pairs are broken by number. So a first pass, which
    learns no pairs, finds those pieces, and they are put in order ahead of the second.
    """
    package = tokenizers_package()
    pieces: list[str] = []
    for vocab_size in (0, size):
        backend = _wordpiece(package, {}, lowercase)
        trainer = package.trainers.WordPieceTrainer(
            vocab_size=vocab_size,
            min_frequency=min_frequency,
            special_tokens=[*specials, *pieces],
            show_progress=False,
        )
        backend.train_from_iterator(_pieces(texts), trainer)
        vocabulary: dict[str, int] = backend.get_vocab(with_added_tokens=False)
        pieces = sorted(set(vocabulary) - set(specials))
        pieces = [piece for piece in pieces if len(piece) == 3 and piece.startswith("##")]
    return vocabulary


def _pieces(texts: Iterable[str | Path]) -> Iterator[str]:
    empty = True
    for text in texts:
        if isinstance(text, Path):
            with open(text, encoding="utf-8-sig", errors="replace") as lines:
                for line in lines:
                    empty = empty and not line.strip()
                    yield line
        else:
            empty = empty and not text.strip()
            yield text
    if empty:
        raise ValueError("there is no text to learn a vocabulary from")


def _check_size(backend: Any, vocab_size: int, kind: str) -> None:
    size = backend.get_vocab_size(with_added_tokens=True)
    if size > vocab_size:
        raise ValueError(
            f"vocab_size={vocab_size} is too small: the special tokens and the single "
            f"{'bytes' if kind == 'bpe' else 'characters'} are already {size}"
        )


def _byte_level(package: Any) -> Any:
    backend = package.Tokenizer(package.models.BPE())
    backend.pre_tokenizer = package.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = package.decoders.ByteLevel()
    backend.post_processor = package.processors.ByteLevel(trim_offsets=False)
    return backend


def _wordpiece(package: Any, vocabulary: dict[str, int], lowercase: bool) -> Any:
    backend = package.Tokenizer(package.models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = package.normalizers.BertNormalizer(lowercase=lowercase)
    backend.pre_tokenizer = package.pre_tokenizers.BertPreTokenizer()
    backend.decoder = package.decoders.WordPiece(prefix="##")
    return backend
