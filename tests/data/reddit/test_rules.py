"""Every rule on cases worked by hand: what it skips, what just passes, that it alone skips that case, their order."""

import dataclasses
import random
import re

import pytest

from dialogpt_jax.data.reddit.normalise import normalise, tokenize
from dialogpt_jax.data.reddit.records import Comment, Submission
from dialogpt_jax.data.reddit.rules import QUIRKS, RULES, Rules, RulesError, as_tsv, is_offensive, weigh
from dialogpt_jax.data.reddit.threads import LeaveOut, judge, read

WORD30, WORD31 = "a" * 30, "a" * 31
PLAIN = Rules(offensive=frozenset({"fool", "big oaf"}), subreddits=frozenset({"bad"}))
OPENER = "Is that what you think ?"


def comment(own, parent, body, score=1, subreddit="good", author="ann"):
    return Comment(
        f"t1_{own}",
        parent if parent.startswith("t3_") else f"t1_{parent}",
        "t3_s",
        score,
        subreddit,
        "2012-01",
        author,
        body,
    )


def dialogues(records, rules=PLAIN, leave_out=LeaveOut()):  # noqa: B008
    """(what is read, {reply: rule or the dialogue's turns}) of a thread."""
    kept, skipped = [], {}
    for record in records:
        found = read(record, rules, leave_out)
        if isinstance(found, str):
            skipped[record.id[3:]] = found
        else:
            kept.append(found)
    _, outcomes = judge("t3_s", kept, rules)
    return skipped | {one.reply.id[3:]: one.rule or list(one.turns) for one in outcomes}


def of_reply(body, rules=PLAIN, opener=OPENER, **fields):
    """What becomes of a reply to an opener."""
    return dialogues([comment("a", "t3_s", opener), comment("b", "a", body, **fields)], rules)["b"]


# rule: (what it skips, what just passes); each a reply, or fields of a comment.
CASES = {
    "left_out": None,
    "deleted": ({"author": "[deleted]"}, {"author": "deleted"}),
    "quote": ("so it is > that", "so it is < that"),
    "short": ("the", "the end"),
    "no_submission": None,
    "huge_thread": None,
    "subreddit": ({"subreddit": "bad"}, {"subreddit": "badly"}),
    "score": ({"score": 0}, {"score": 1}),
    "long_turn": ("to be or " * 10 + "not", "to be or " * 10),
    "depth": None,
    "offensive": None,
    "empty_target": ("☕ ☕", "☕ the"),
    "long_word": (f"the {WORD31}", f"the {WORD30}"),
    "long_pair": None,
    "url": ("see the http://a.b", "see the htp thing"),
    "brackets": ("it is [sic] here", "it is (sic) here"),
    "capitals": ("what a HORRID idea", "what a BAAD idea"),
    "repetitions": ("no no no to that", "no no to that no"),
    "common_words": ("bonjour mes amis", "bonjour mes amis The"),
    "empty_source": None,
    "weightless": None,
    "bland": None,
}


@pytest.mark.parametrize("rule", [rule for rule, case in CASES.items() if case])
def test_a_rule_skips_its_case_alone_and_not_what_is_just_within(rule):
    over, within = CASES[rule]
    base = dataclasses.replace(PLAIN, without=frozenset({"common_words"} if rule == "empty_target" else ()))
    off = dataclasses.replace(PLAIN, without=base.without | {rule})

    def found(case, rules):
        return of_reply(case, rules) if isinstance(case, str) else of_reply("It is so .", rules, **case)

    assert found(over, base) == rule
    assert isinstance(found(within, base), list)
    assert isinstance(found(over, off), list), "another rule skips it too"


def test_every_rule_has_a_case():
    assert CASES.keys() == RULES.keys()


def test_what_is_left_out_by_comment_thread_and_author():
    thread = [
        comment("a", "t3_s", OPENER),
        comment("b", "a", "It is so ."),
        comment("c", "a", "No to that .", author="Bob"),
    ]
    assert dialogues(thread, leave_out=LeaveOut(frozenset({"t1_b"}))) == {
        "b": "left_out",
        "c": [OPENER, "No to that ."],
    }
    assert dialogues(thread, leave_out=LeaveOut(authors=frozenset({"bob"}))) == {
        "c": "left_out",
        "b": [OPENER, "It is so ."],
    }
    assert set(dialogues(thread, leave_out=LeaveOut(frozenset({"t3_s"}))).values()) == {"left_out"}
    off = dialogues(thread, dataclasses.replace(PLAIN, without=frozenset({"left_out"})), LeaveOut(frozenset({"t1_b"})))
    assert off["b"] == "left_out"  # a person's wish is no rule that can be turned off


def test_no_submission():
    thread = [comment("a", "t3_s", OPENER), comment("b", "a", "It is so .")]
    script = dataclasses.replace(PLAIN, faithful=frozenset({"submissions"}))
    assert set(dialogues(thread, script).values()) == {"no_submission"}
    one, two = (Submission("t3_s", "good", "ann", "What ?", count) for count in (1, 2))
    assert set(dialogues([one, *thread], script).values()) == {"no_submission"}
    assert dialogues([two, *thread], script)["b"] == [OPENER, "It is so ."]
    assert dialogues(thread, PLAIN)["b"] == [OPENER, "It is so ."]
    off = dataclasses.replace(script, without=frozenset({"no_submission"}), subreddits=frozenset())
    assert isinstance(dialogues(thread, off)["b"], list)
    off = dataclasses.replace(off, subreddits=frozenset({"bad"}))
    assert dialogues(thread, off)["b"] == "subreddit"  # the script skips what it does not know, where there is a list


def test_depth():
    assert dialogues([comment("a", "t3_s", OPENER)]) == {"a": "depth"}
    assert dialogues(
        [comment("a", "t3_s", OPENER)], dataclasses.replace(PLAIN, without=frozenset({"depth", "weightless"}))
    )["a"] == [OPENER]
    long = [comment("a", "t3_s", "to be or " * 10 + "not"), comment("b", "a", "It is so .")]
    assert dialogues(long) == {"b": "depth"}  # the long turn empties the path above the reply
    assert of_reply("It is so .", dataclasses.replace(PLAIN, min_depth=3)) == "depth"
    titled = [Submission("t3_s", "good", "ann", "Why ?", 2), comment("a", "t3_s", OPENER)]
    assert dialogues(titled, dataclasses.replace(PLAIN, titles=True))["a"] == ["title : Why ?", OPENER]


def test_long_pair_counts_all_words():
    rules = dataclasses.replace(PLAIN, max_pair_words=8)
    assert len(OPENER.split()) == 6
    assert isinstance(of_reply("the end", rules), list)
    assert of_reply("the very end", rules) == "long_pair"
    assert isinstance(of_reply("the very end", dataclasses.replace(rules, without=frozenset({"long_pair"}))), list)
    # The script counts two weights more, and here no EOS: there is one turn before the reply.
    script = dataclasses.replace(rules, faithful=frozenset({"counting"}))
    assert of_reply("the end", script) == "long_pair"
    assert isinstance(of_reply("the end", dataclasses.replace(script, max_pair_words=10)), list)
    three = [comment("a", "t3_s", OPENER), comment("b", "a", "the end"), comment("c", "b", "it is")]
    for most, kept in ((14, True), (13, False)):  # 10 words, 3 weights, 1 EOS
        assert isinstance(dialogues(three, dataclasses.replace(script, max_pair_words=most))["c"], list) is kept


def test_offensive_words_weigh_nothing_or_skip():
    turns = ["You FOOL !", "It is a big oaf .", "A foolish thing to say ."]
    assert weigh(turns, PLAIN) == [0.0, 0.0, 1.0]
    assert weigh(turns, dataclasses.replace(PLAIN, without=frozenset({"offensive"}))) == [1.0] * 3
    every = dataclasses.replace(PLAIN, all_comments=True)
    assert of_reply("You are a fool .", every) == "offensive"
    assert isinstance(of_reply("You are foolish .", every), list)
    assert isinstance(of_reply("You are it .", every, opener="You fool of it !"), list)  # the reply alone is looked at
    off = dataclasses.replace(every, without=frozenset({"offensive"}))
    assert isinstance(of_reply("You are a fool .", off), list)


def test_long_lists_of_offensive_words_are_asked_as_short_ones():
    def plainly(text, entries):
        return any(re.search(rf"(?<![a-z0-9_]){re.escape(one)}(?![a-z0-9_])", text.lower()) for one in entries)

    rng = random.Random(0)
    pieces = ["oaf", "big", "BIG", "a", "don't", "(", "'", "oafs", "x_y", "y", " ", " ", " ", "."]
    entries = ["oaf", "big oaf", "don't", "a (big", "x_y", "( big", "' '", "y ."]
    for _ in range(500):
        text = " ".join("".join(rng.choices(pieces, k=8)).split())
        some = frozenset(rng.sample(entries, 3))
        assert is_offensive(text, Rules(offensive=some)) == plainly(text, some), (text, some)
    # What is not in the text must not cost: 300 times 20,000 phrases would be ten minutes.
    rules = Rules(offensive=frozenset({*(f"word{n}" for n in range(20_000)), *(f"so {n} it" for n in range(20_000))}))
    turns = [f"It is so {n} it said" for n in range(20_000, 20_300)]
    assert not any(is_offensive(turn, rules) for turn in turns)
    assert is_offensive("It is SO 7 it said", rules)


def test_weightless_and_empty_source():
    assert of_reply("You are a fool .") == "weightless"
    for change in ({"without": frozenset({"weightless"})}, {"faithful": frozenset({"weightless"})}):
        assert of_reply("You are a fool .", dataclasses.replace(PLAIN, **change)) == [OPENER, "You are a fool ."]
    assert of_reply("It is so .", opener="☕ ☕") == "empty_source"
    for change in ({"without": frozenset({"empty_source"})}, {"faithful": frozenset({"empty_turns"})}):
        assert of_reply("It is so .", dataclasses.replace(PLAIN, **change), opener="☕ ☕") == ["", "It is so ."]


ORDER = [  # of a pair and its path: what breaks a rule and all those behind it gets the first one's name
    ("subreddit", {"subreddit": "bad", "score": 0}, "to be or " * 11),
    ("score", {"score": 0}, "to be or " * 11),
    ("long_turn", {}, f"{WORD31} http://a [x] SHOUT no no no " * 5),
    ("long_word", {}, f"{WORD31} http://a [x] SHOUTING no no no fool mes"),
    ("long_pair", {}, "http://a [x] SHOUTING no no no fool mes"),
    ("url", {}, "http://a [x] SHOUTING no no no mes"),
    ("brackets", {}, "[x] SHOUTING no no no"),
    ("capitals", {}, "SHOUTING no no no"),
    ("repetitions", {}, "no no no"),
    ("common_words", {}, "fool mes amis"),
    ("empty_source", {}, "a fool"),
    ("weightless", {}, "a fool"),
]


@pytest.mark.parametrize(("rule", "fields", "body"), ORDER)
def test_the_first_rule_that_is_broken_gives_its_name(rule, fields, body):
    rules, opener = PLAIN, "☕ ☕" if rule in ("common_words", "empty_source") else OPENER
    if rule in ("long_word", "long_pair"):
        rules = dataclasses.replace(PLAIN, max_pair_words=6)
    assert of_reply(body, rules, opener, **fields) == rule


def test_comments_by_themselves_in_order():
    assert of_reply("> said [deleted]", author="[deleted]") == "deleted"
    assert of_reply(">") == "quote"
    every = dataclasses.replace(PLAIN, all_comments=True)
    assert of_reply(f"fool {WORD31}", every) == "offensive"  # before long_word
    assert of_reply("☕ ☕", every, opener="☕ ☕") == "empty_target"
    assert dialogues([comment("a", "t3_s", ">")], leave_out=LeaveOut(frozenset({"t1_a"}))) == {"a": "left_out"}


QUIRK_CASES = {  # (opener, reply, as the script has it, fixed)
    "deleted": (OPENER, "[ Removed by Reddit ] it is", "brackets", "deleted"),
    "entities": (OPENER, "the R&amp;D of it", "the R amp D of it", "the R D of it"),
    "apostrophes": (OPENER, "I don’t of it", "I don t of it", "I don't of it"),
    "url_word": (OPENER, "the URL of it", "url", "the URL of it"),
    "separator": (OPENER, "the EOS of it", "the EOS of it", "the eos of it"),
    "counting": (OPENER, "1.0 1.0 to you", "repetitions", "1.0 1.0 to you"),
    "brackets": ("it is [sic] here", "it is (sic) here", "brackets", "it is ( sic ) here"),
    "common_words": (OPENER, "bonjour mes amis", "bonjour mes amis", "common_words"),
    "empty_turns": ("☕ ☕", "it is so", "it is so", "empty_source"),
    "weightless": (OPENER, "a fool", "a fool", "weightless"),
}


@pytest.mark.parametrize("quirk", QUIRK_CASES)
def test_a_quirk_is_faithful_or_fixed(quirk):
    opener, reply, script, fixed = QUIRK_CASES[quirk]
    last = lambda found: found if isinstance(found, str) else found[-1]  # noqa: E731
    assert last(of_reply(reply, dataclasses.replace(PLAIN, faithful=frozenset({quirk})), opener)) == script
    others = frozenset(QUIRKS) - {quirk, "submissions", "counting"}
    assert last(of_reply(reply, PLAIN, opener)) == fixed
    if quirk not in ("brackets", "common_words", "deleted"):
        assert (
            last(of_reply(reply, dataclasses.replace(PLAIN, faithful=others, subreddits=frozenset()), opener)) == fixed
        )


def test_one_word_replies_pass_with_weights_alone_in_the_script():
    script = dataclasses.replace(PLAIN, faithful=frozenset({"counting", "all_comments", "common_words"}))
    assert of_reply("☕ yes", script)[-1] == "yes"
    assert of_reply("☕ yes", dataclasses.replace(script, all_comments=True)) == "empty_target"
    assert of_reply("☕ the", dataclasses.replace(PLAIN, all_comments=True))[-1] == "the"


@pytest.mark.parametrize("turn", ["", f"the {WORD31}", "the [sic]", "no no no the", "mes amis"])
def test_an_inner_turn_that_breaks_a_rule_of_replies_weighs_nothing(turn):
    turns = ["a b", turn, "a b"]
    assert weigh(turns, PLAIN) == [1.0, 0.0, 1.0]
    assert weigh(["a b", "a b", turn], PLAIN) == [1.0] * 3  # of the last one why_no_pair judges
    assert weigh([turn, "a b"], PLAIN) == [1.0] * 2
    assert weigh(turns, dataclasses.replace(PLAIN, faithful=frozenset({"inner_targets"}))) == [1.0] * 3


def test_with_all_comments_the_last_turn_is_the_target():
    every = dataclasses.replace(PLAIN, all_comments=True)
    assert weigh(["a", "b", "c"], every) == [0.0, 0.0, 1.0]
    assert every.weighted
    assert not dataclasses.replace(every, faithful=frozenset({"all_comments"})).weighted


def test_lines_of_tsv():
    assert as_tsv(["Hi .", "You .", "Bye ."], [1.0, 0.0, 1.0]) == "1.0 Hi . EOS 0.0 You .\t1.0 Bye ."
    assert as_tsv(["Hi .", "Bye ."], None) == "Hi .\tBye ."


def test_normalising_by_hand():
    script = frozenset(QUIRKS)
    for text, said in (
        ("Hello,  world!", "Hello , world !"),
        ("#tag it's :) 3.50 ... okay", "it's :) 3.50 ... okay"),
        ("seehttp://a.b/c?d and", "see __url__ and"),
        ("j/k w/o w/you b/c", "just kidding without withyou because"),
        ("a\\b $5 — 50% “q”", "ab 5 50 “ q ”"),
        ("CURL URL", "C__url __ __url__"),
        ("Ünï é", "n"),
    ):
        assert normalise(text, script) == said
    assert normalise("URL __url__ MENTION \ue000 http://x") == "URL url MENTION __url__"


def test_domains_and_long_runs_of_digits():
    text = "see ab.cd.com. a1.b2.c3 1.5 Hi.There 555 1234567abc.com x.toolongtobeadomain a..com"
    assert tokenize(text) == [
        "see", "ab.cd.com", ".", "a1", ".", "b2", ".", "c3", "1.5", "Hi.There", "555 1234567", "abc.com",
        "x", ".", "toolongtobeadomain", "a", "..", "com"
    ]  # fmt: skip
    assert tokenize("1" * 24 + "." + "1" * 9 + ".org") == ["1" * 24 + "." + "1" * 9 + ".org"]
    assert len(tokenize("a." * 126 + "com")) == 1
    assert tokenize("a." * 128 + "com")[:3] == ["a", ".", "a." * 127 + "com"]
    assert set(tokenize("1" * 99_000)) == {"1" * 11}  # telephone numbers


def test_names_and_numbers_are_checked():
    with pytest.raises(RulesError, match="no rule is called 'scores'; there are left_out, deleted"):
        Rules(without=frozenset({"scores"}))
    with pytest.raises(RulesError, match="no quirk is called 'x'"):
        Rules(faithful=frozenset({"x"}))
    with pytest.raises(RulesError, match="max_depth is 0"):
        Rules(max_depth=0)
    with pytest.raises(RulesError, match="max_depth is 2, below min_depth, 3"):
        Rules(min_depth=3, max_depth=2)
