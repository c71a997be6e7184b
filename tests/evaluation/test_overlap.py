"""BLEU and NIST: cases worked by hand, mteval's corners, and BLEU against sacrebleu."""

import math
import random

import numpy as np
import pytest

from dialogpt_jax.evaluation.overlap import bleu, count_overlap, nist, tokenize, total
from dialogpt_jax.evaluation.reply_files import repeat_references

DIGITS = 5e-5  # four digits, as mteval prints them
ROUNDING = 1e-9  # two sums of the same float64 numbers in another order

REPLIES = ["The cat sat on the mat", "a dog"]
REFERENCES = [["the cat is on the mat", "There is a cat on the mat"], ["a big dog ran", "the dog"]]


def scores(hypotheses, references):
    sums = total(count_overlap(hypotheses, references))
    return nist(sums), bleu(sums)


def test_bleu_by_hand():
    """Line 1: the the cat on mat = 5 of 6; `the cat`, `on the`, `the mat` = 3 of 5; `on the mat` = 1 of 4; 0 of 3.
    Line 2: a dog = 2 of 2; 0 of 1; it has no longer n-gram. Together 7/8, 3/6, 1/4, 0/3.
    Lengths: the closest references have 6 and 2 words, the replies 6 and 2: no penalty.
    BLEU-1 7/8; BLEU-2 √(7/8·1/2); BLEU-3 ∛(7/8·1/2·1/4); BLEU-4: the first order without a match counts half a
    match, 1/6: (7/8·1/2·1/4·1/6)^¼.
    """
    rows = count_overlap(REPLIES, REFERENCES)
    np.testing.assert_array_equal(rows.matches_BN, [[5, 3, 1, 0], [2, 0, 0, 0]])
    np.testing.assert_array_equal(rows.totals_BN, [[6, 5, 4, 3], [2, 1, 0, 0]])
    np.testing.assert_array_equal(rows.closest_B, [6, 2])
    np.testing.assert_allclose(bleu(total(rows)), [0.8750, 0.6614, 0.4782, 0.3674], atol=DIGITS, rtol=0)


def test_nist_by_hand():
    """The references have 6 + 7 + 4 + 2 = 19 words; `the` stands 4 times, cat, on, mat, a and dog 2 times each.
    Words: 2·log2(19/4) + 5·log2(19/2) = 4.4959 + 16.2396 = 20.7355 bits, over 8 words: 2.5919.
    Pairs: `the cat` log2(4/1) = 2, `on the` log2(2/2) = 0, `the mat` log2(4/2) = 1: 3 bits over 6 pairs: 0.5.
    Threes: `on the mat` log2(2/2) = 0. Fours: none.
    Length: 8 words against a mean of 6.5 + 3 = 9.5; β = ln 2 / ln² 1.5 = 4.2162; exp(−β·ln²(8/9.5)) = 0.8829.
    """
    rows = count_overlap(REPLIES, REFERENCES)
    np.testing.assert_array_equal(rows.references_B, [6.5, 3.0])
    np.testing.assert_allclose(rows.information_BN.sum(axis=0), [20.7355, 3.0, 0.0, 0.0], atol=DIGITS, rtol=0)
    np.testing.assert_allclose(nist(total(rows)), [2.2885, 2.7300, 2.7300, 2.7300], atol=DIGITS, rtol=0)


def test_numbers_of_references_may_differ():
    """Without `the dog` line 2 has one reference, of 4 words: BLEU's length 6 + 4 = 10, exp(1 − 10/8) = 0.7788; NIST's
    mean 6.5 + 4 = 10.5, exp(−4.2162·ln²(8/10.5)) = 0.7321; `the` 3 and `dog` 1 of 17 words: 2·log2(17/3) + 4·log2(17/2)
    + log2(17/1) = 5.0050 + 12.3499 + 4.0875 = 21.4423 bits over 8 words: 2.6803·0.7321 = 1.9624.
    """
    found_nist, found_bleu = scores(REPLIES, [REFERENCES[0], REFERENCES[1][:1]])
    assert found_bleu[0] == pytest.approx(0.8750 * 0.7788, abs=DIGITS)
    assert found_nist[0] == pytest.approx(1.9624, abs=DIGITS)


def test_closest_length_and_of_two_the_shorter():
    """A reply of 5 words: 4 and 6 words are as near: 4. A reply of 2: 3 is nearer than 6."""
    rows = count_overlap(["a b c d e", "a b"], [["1 2 3 4 5 6", "1 2 3 4"], ["1 2 3 4 5 6", "1 2 3"]])
    np.testing.assert_array_equal(rows.closest_B, [4, 3])


def test_length_factor_of_nist_is_a_half_at_two_thirds():
    found, _ = scores(["a b", "c d"], [["a b x"], ["c d y"]])
    # 4 of 6 words; every word log2(6/1) bits; pairs log2(1/1) = 0
    assert found[0] == pytest.approx(0.5 * math.log2(6), abs=ROUNDING)
    longer, _ = scores(["a b x x", "c d y y"], [["a b x"], ["c d y"]])
    assert longer[0] == pytest.approx(6 * math.log2(6) / 8, abs=ROUNDING), "a reply that is too long is not punished"


def test_counts_are_clipped_by_one_reference_not_by_all_together():
    rows = count_overlap(["the the the", "a"], [["the", "the the x"], ["b"]])
    assert rows.matches_BN[0, 0] == 2


def test_matches_of_another_line_do_not_count():
    rows = count_overlap(["a b", "c d"], [["c d"], ["a b"]])
    assert rows.matches_BN.sum() == 0


def test_word_0_is_false_in_perl():
    """`0 a` against `0 a 0 b`: 4 words, `0` twice. Words: log2(4/2) + log2(4/1) = 3 bits over 2. The pair `0 a` should
    have log2(2/1) = 1 bit; the script takes `0` for no prefix at all: log2(4/1) = 2. Length 2/4: exp(−4.2162·ln² ½) =
    0.13190. NIST-2 = 0.13190·(1.5 + 2). The pair `00 a` is not concerned.
    """
    found, _ = scores(["0 a"], [["0 a 0 b"]])
    np.testing.assert_allclose(found[:2], [0.1979, 0.4617], atol=DIGITS, rtol=0)
    usual, _ = scores(["00 a"], [["00 a 00 b"]])
    np.testing.assert_allclose(usual[:2], [0.1979, 0.3298], atol=DIGITS, rtol=0)


def test_orders_without_any_ngram():
    """Replies of two words at most have no 3-grams: the order counts as precision 1, as in mteval (sacrebleu: 0)."""
    _, found = scores(["a b", "c"], [["a b c d"], ["c d"]])
    brevity = math.exp(1 - 6 / 3)
    np.testing.assert_allclose(found, brevity * np.ones(4), atol=ROUNDING)


def test_no_match_is_smoothed_twice_smaller_each_order():
    _, found = scores(["1 2 3 4 5", "1 2 3 4 5"], [["a b c d e"], ["a b c d e"]])
    logs = np.log([1 / (2 * 10), 1 / (4 * 8), 1 / (8 * 6), 1 / (16 * 4)])
    np.testing.assert_allclose(found, np.exp(np.cumsum(logs) / [1, 2, 3, 4]), atol=ROUNDING)


@pytest.mark.parametrize("hypotheses", [["", ""], ["", "a b c d e"]])
def test_empty_replies(hypotheses):
    found_nist, found_bleu = scores(hypotheses, [["a b c d e"], ["a b c d e", "x"]])
    assert np.isfinite(found_nist).all()
    # against 5 words for a reply of 5, and 1 ("x") or 5 for one of none
    assert found_bleu[0] == pytest.approx(math.exp(1 - 10 / 5) if hypotheses[1] else 0.0)


def test_nothing_at_all_is_zero_not_nan():
    found_nist, found_bleu = scores(["", ""], [[""], ["", ""]])
    np.testing.assert_array_equal([*found_nist, *found_bleu], 0.0)


def test_same_text_is_one():
    _, found = scores(["a b c d e", "f g h i"], [["a b c d e"], ["x", "f g h i"]])
    np.testing.assert_allclose(found, 1.0, atol=ROUNDING)


def test_weighted_sums_are_repeated_lines():
    rows = count_overlap(REPLIES, REFERENCES)
    weighed = bleu(total(rows, np.asarray([[2.0, 1.0], [0.0, 3.0]])))
    first = bleu(total(count_overlap([REPLIES[0], *REPLIES], [REFERENCES[0], *REFERENCES])))
    second = bleu(total(count_overlap([REPLIES[1]] * 3, [REFERENCES[1]] * 3)))
    np.testing.assert_allclose(weighed, [first, second], atol=ROUNDING)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Hello, World!", "hello , world !"),
        ("ÉCOLE Él", "École Él"),  # only ASCII letters become small ones
        ("I don't know.", "i don't know ."),
        ("3.5 10,000 U.S. 5. .7", "3.5 10,000 u . s . 5 . . 7"),
        ("5-6 well-known", "5 - 6 well-known"),
        ("http://a.b/c?d=1&e=2", "http : / / a . b / c ? d = 1 & e = 2"),
        ("&amp;lt; &quot;q&quot; a<b <skipped>x", '< " q " a < b x'),
        ("end-\nless\nline", "endless line"),
        ("a_b #x [l](u) ~^`|", "a _ b # x [ l ] ( u ) ~ ^ ` |"),
        ("a\u00a0b\u2003 c", "a b c"),
        ("", ""),
    ],
)
def test_tokenization(text, words):
    assert tokenize(text) == words.split()


def test_repeated_references_change_nist_but_not_bleu():
    repeated = [repeat_references(line, 5) for line in REFERENCES]
    found_nist, found_bleu = scores(REPLIES, repeated)
    as_they_are = scores(REPLIES, REFERENCES)
    np.testing.assert_allclose(found_bleu, as_they_are[1], atol=ROUNDING)
    assert abs(found_nist[0] - as_they_are[0][0]) > 0.01


def test_unequal_numbers_are_an_error_with_both():
    with pytest.raises(ValueError, match="2 hypotheses and 1 lists of references"):
        count_overlap(["a", "b"], [["a"]])
    with pytest.raises(ValueError, match="line 2 has no reference"):
        count_overlap(["a", "b"], [["a"], []])


TEXT = """the a cat dog 0 00 3.5 10,000 U.S. i'm don't well-known 5-6 http://a.b/c?d=1&e=2 & &amp; &lt;b> <b>
&quot;hi&quot; -- ... !!! naïve (x) [URL](y) @me a_b $5 50% 7. .7 ,8 OK YES e.g., 1-"""
WORDS = TEXT.split()


def ragged(num_lines, most_references, *, equal):
    """Lines of 0 to 20 words, with references that are the line with words changed and left out."""
    draw = random.Random(most_references)

    def near(line):
        return " ".join(word if draw.random() < 0.7 else draw.choice(WORDS) for word in line if draw.random() < 0.95)

    lines = [[draw.choice(WORDS) for _ in range(draw.randint(0, 20))] for _ in range(num_lines)]
    counts = [most_references if equal else draw.randint(1, most_references) for _ in lines]
    return [near(line) for line in lines], [
        [near(line) for _ in range(n)] for line, n in zip(lines, counts, strict=True)
    ]


@pytest.mark.parametrize(("most", "equal"), [(1, True), (2, True), (5, True), (5, False)])
def test_bleu_equals_sacrebleu(most, equal):
    sacrebleu = pytest.importorskip("sacrebleu", reason="needs sacrebleu, of the extra `test`")
    hypotheses, references = ragged(500, most, equal=equal)
    _, found = scores(hypotheses, references)
    streams = [[line[i] if i < len(line) else None for line in references] for i in range(most)]
    for k in range(1, 5):
        theirs = sacrebleu.BLEU(lowercase=True, tokenize="13a", smooth_method="exp", max_ngram_order=k)
        assert found[k - 1] == pytest.approx(theirs.corpus_score(hypotheses, streams).score / 100, abs=ROUNDING)
