"""The one tokenizer: preparation, evaluation and the serving graph all use it, so that they see the same ids.

It is TensorFlow Text's FastBertTokenizer with the checkpoint's vocabulary. It differs from the Rust tokenizer of
`transformers` on full-width letters, vulgar fractions, ligatures and literal "[MASK]" in a text; training with one and
serving with the other would be skew.
"""

import hashlib
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tff_pipeline.artifacts import fingerprint, sha256_file
from tff_pipeline.config import ModelSection
from tff_pipeline.errors import ConfigError

if TYPE_CHECKING:
    import tensorflow as tf

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
MASK_TOKEN = "[MASK]"


def checkpoint_folder(checkpoint: str) -> Path:
    """The folder of a checkpoint given as a folder, as "package:NAME" (an installed package) or as a hub id.

    Raises:
      ConfigError: if there is no such folder or package, or the hub cannot be reached.
    """
    if checkpoint.startswith("package:"):
        package = checkpoint.removeprefix("package:")
        spec = importlib.util.find_spec(package)
        folders = [Path(location) for location in (spec.submodule_search_locations or [])] if spec else []
        for folder in (candidate for root in folders for candidate in (root / "model", root)):
            if (folder / "config.json").is_file():
                return folder
        raise ConfigError(
            f"model.checkpoint is {checkpoint!r}, but no installed package of that name holds a model folder with a config.json. Install it into this environment."
        )
    if Path(checkpoint).is_dir():
        return Path(checkpoint)
    if checkpoint.startswith(("/", ".")):
        raise ConfigError(
            f"model.checkpoint is {checkpoint!r}, which is not a folder; expected a folder with config.json, vocab.txt and weights."
        )
    import huggingface_hub

    try:
        return Path(
            huggingface_hub.snapshot_download(
                checkpoint, allow_patterns=["*.json", "vocab.txt", "*.safetensors", "tf_model.h5"]
            )
        )
    except Exception as error:
        raise ConfigError(
            f'model.checkpoint is {checkpoint!r}, which is no folder here and could not be fetched from the hub ({type(error).__name__}). Name a folder, or "package:NAME" of an installed package.'
        ) from error


def checkpoint_identity(checkpoint: str) -> str:
    """What tells one checkpoint from another wherever it lies: its name, or for a folder the checksums of its weights."""
    if not Path(checkpoint).is_dir():
        return checkpoint
    weights = sorted(path for path in Path(checkpoint).iterdir() if path.suffix in (".safetensors", ".h5", ".bin"))
    return fingerprint({path.name: sha256_file(path) for path in weights})


def _lower_cases(settings: Path) -> bool:
    """Whether a checkpoint's tokenizer lower-cases texts; True where it does not say."""
    if not settings.is_file():
        return True
    try:
        return bool(dict(json.loads(settings.read_text(encoding="utf-8"))).get("do_lower_case", True))
    except (OSError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{settings}: cannot be read ({type(error).__name__}); expected the settings of the checkpoint's tokenizer, a JSON object. Download the checkpoint again."
        ) from None


class Tokenizer:
    """Text to wordpiece ids with [CLS] first and [SEP] last, at most `max_length` of them.

    `fingerprint` identifies everything that determines the ids. Picklable: the TensorFlow object is made on first use.
    """

    def __init__(self, vocabulary: Sequence[str], *, lower_case: bool, max_length: int):
        self.vocabulary = tuple(vocabulary)
        self.lower_case = lower_case
        self.max_length = max_length
        missing = [token for token in SPECIAL_TOKENS if token not in self.vocabulary]
        if missing:
            raise ConfigError(
                f"the vocabulary of {len(self.vocabulary)} entries lacks {', '.join(missing)}; expected a BERT wordpiece vocabulary, one token a line. Name one with model.vocabulary."
            )
        self.pad_id, self.unk_id, self.cls_id, self.sep_id = (self.vocabulary.index(token) for token in SPECIAL_TOKENS)
        settings = ["FastBertTokenizer", lower_case, max_length, *self.vocabulary]
        self.fingerprint = hashlib.sha256("\0".join(map(str, settings)).encode()).hexdigest()[:16]
        self._fast: Any = None

    @property
    def unknown_word(self) -> str:
        """The token that stands for any word: what BERT was pretrained to guess, or in a vocabulary without it [UNK]."""
        return MASK_TOKEN if MASK_TOKEN in self.vocabulary else SPECIAL_TOKENS[1]

    @classmethod
    def from_config(cls, model: ModelSection, max_length: int) -> "Tokenizer":
        """The tokenizer of `model.checkpoint`, or of `model.vocabulary` where that is given.

        Raises:
          ConfigError: if there is no vocabulary, or it is not one of BERT's.
        """
        lower_case = True
        if model.vocabulary:
            path = Path(model.vocabulary)
        else:
            folder = checkpoint_folder(model.checkpoint)
            path = folder / "vocab.txt"
            lower_case = _lower_cases(folder / "tokenizer_config.json")
        if model.lower_case is not None:
            lower_case = model.lower_case
        try:
            vocabulary = path.read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"{path}: cannot be read ({type(error).__name__}); expected a BERT vocabulary, one token a line, in the checkpoint or as model.vocabulary. Check that the file is there and that this account may read it."
            ) from None
        if vocabulary and not vocabulary[-1]:
            vocabulary.pop()
        return cls([token.rstrip("\r") for token in vocabulary], lower_case=lower_case, max_length=max_length)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_fast": None}

    def ragged(self, texts: "tf.Tensor") -> "tf.RaggedTensor":
        """string [batch] to int32 [batch, (length)], in eager code or inside a graph. Uses core and BERT-tokenizer ops only."""
        return self.framed(self._tokenizer().tokenize(texts)[:, : self.max_length - 2])

    def framed(self, pieces: "tf.RaggedTensor") -> "tf.RaggedTensor":
        """int32 [batch, (pieces)] with [CLS] before and [SEP] after each row."""
        import tensorflow as tf

        count = pieces.nrows(tf.int32)
        first, last = tf.fill([count, 1], self.cls_id), tf.fill([count, 1], self.sep_id)
        joined: Any = tf.concat([first, pieces, last], axis=1)
        return joined

    def ragged_with_offsets(self, texts: "tf.Tensor") -> tuple["tf.RaggedTensor", "tf.RaggedTensor", "tf.RaggedTensor"]:
        """The pieces that `ragged` frames, and the bytes of the text at which each begins and ends: int32 [batch, (pieces)] all three."""
        import tensorflow as tf

        cast: Any = tf.cast
        pieces, starts, ends = (
            cast(values[:, : self.max_length - 2], tf.int32)
            for values in self._tokenizer().tokenize_with_offsets(texts)
        )
        return pieces, starts, ends

    def encode(self, texts: Sequence[str | bytes]) -> tuple[np.ndarray, np.ndarray]:
        """Many texts at once.

        Returns:
          The ids of all texts one after the other, int32 [sum of lengths], and their lengths, int64 [texts].
        """
        import tensorflow as tf

        if not texts:
            return np.zeros(0, np.int32), np.zeros(0, np.int64)
        with tf.device("CPU"):
            pieces = self._tokenizer().tokenize(tf.constant(list(texts)))
        # This is `ragged` on arrays, since its eager operations took four times as long as the tokenizer.
        counts, ids = np.diff(pieces.row_splits.numpy()), pieces.values.numpy()
        kept = np.minimum(counts, self.max_length - 2)
        if (kept < counts).any():
            position = np.arange(len(ids)) - np.repeat(np.cumsum(counts) - counts, counts)
            ids = ids[position < np.repeat(kept, counts)]
        lengths = kept + 2
        ends = np.cumsum(lengths)
        framed = np.empty(ends[-1], np.int32)
        inner = np.ones(len(framed), bool)
        inner[ends - lengths] = inner[ends - 1] = False
        framed[ends - lengths], framed[ends - 1], framed[inner] = self.cls_id, self.sep_id, ids
        return framed, lengths

    def ragged_words(self, words: "tf.Tensor") -> "tf.RaggedTensor":
        """string [words] to int32 [words, (pieces)], at least one piece each, without [CLS] and [SEP]; as `ragged` does it."""
        import tensorflow as tf

        pieces = self._tokenizer().tokenize(words)
        empty = tf.cast(tf.equal(pieces.row_lengths(), 0), tf.int64)
        ragged: Any = tf.RaggedTensor
        unknown = ragged.from_row_lengths(tf.fill([tf.reduce_sum(empty)], self.unk_id), empty)
        joined: Any = tf.concat([pieces, unknown], axis=1)
        return joined

    def encode_words(self, words: Sequence[str | bytes]) -> tuple[np.ndarray, np.ndarray]:
        """One sentence that is already split into words, for token classification.

        Returns:
          ids, int32 [length], with [CLS] and [SEP]; and for each id the index of the word whose first piece it is, or
          -1, int64 [length]. A word without pieces (one of control characters only) becomes [UNK], so that it keeps its tag.
        """
        import tensorflow as tf

        with tf.device("CPU"):
            pieces = self.ragged_words(tf.constant(list(words), tf.string)).to_list()
        ids, first = [self.cls_id], [-1]
        for index, word in enumerate(pieces):
            ids += word
            first += [index] + [-1] * (len(word) - 1)
        ids, first = ids[: self.max_length - 1], first[: self.max_length - 1]
        return np.array([*ids, self.sep_id], np.int32), np.array([*first, -1], np.int64)

    def _tokenizer(self) -> Any:
        if self._fast is None:
            import tensorflow as tf
            import tensorflow_text as text

            with tf.init_scope():
                self._fast = text.FastBertTokenizer(
                    list(self.vocabulary),
                    token_out_type=tf.int32,
                    lower_case_nfd_strip_accents=self.lower_case,
                    support_detokenization=False,
                )
        return self._fast
