"""Talks with the installed `dialogpt chat` through a pipe and holds it to what a person expects.

python conversation.py PATH_OF_DIALOGPT
"""

import json
import subprocess
import sys

QUESTIONS = ["What is your favorite movie?", "Do you have any pets?", "What did you eat today?"]


def chat(dialogpt: str, lines: list[str], *flags: str) -> list[str]:
    """The replies, a line of stdout each."""
    done = subprocess.run(
        [dialogpt, "chat", *flags], input="\n".join(lines) + "\n", capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    print(*(f"  {line}" for line in done.stdout.splitlines()), done.stderr.rstrip(), sep="\n")
    return done.stdout.splitlines()


def main(dialogpt: str) -> None:
    first = chat(dialogpt, QUESTIONS)
    assert len(first) == 3, "a line for each question"
    assert all(reply.strip() for reply in first), "no reply is empty"
    assert len(set(first)) == 3, "three different questions, three different replies"
    turns: list[str] = []
    for question, reply in zip(QUESTIONS, first, strict=True):
        turns.append(question)
        words = [dialogpt, "reply", "--rank", "sense", "--json", *turns]  # by which a chat chooses, too
        done = subprocess.run(words, capture_output=True, text=True, timeout=300)
        found = json.loads(done.stdout)["hypotheses"][0]
        assert found["finished"], f"the reply ends by itself: {found}"
        assert found["text"] == reply, "`dialogpt reply` with the turns so far says what the chat said"
        turns.append(reply)
    assert chat(dialogpt, QUESTIONS) == first, "the same seed repeats"
    assert chat(dialogpt, QUESTIONS, "--seed", "1") != first, "another seed does not"
    undone = chat(dialogpt, [QUESTIONS[0], QUESTIONS[1], "/undo", QUESTIONS[1]])
    assert undone[1] == undone[2], "/undo and the same line give the same reply"
    print("the conversation holds")


if __name__ == "__main__":
    main(sys.argv[1])
