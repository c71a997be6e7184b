"""The paper's corpus from dumps of Reddit: lines of dumps in; dialogues, and what was skipped and why, out.

    dumps ─lines (dumps.py)→ records (records.py) ─by thread→ paths (trees.py) ─rules (rules.py)→ dialogues (threads.py)

All of that is pure functions, which two things run: `extract.py` on one machine, in bounded memory, and `cluster.py` as an
Apache Beam pipeline. Nothing is downloaded, and no data ships with the package.
"""

TERMS = """\
You bring the dumps, and you answer for their use: Reddit's User Agreement and its API and data terms say who may use its \
content and for what, and the people who wrote it have a right to have it deleted. Leave out what they deleted \
(--leave-out), keep the intermediate files no longer than needed, and run anew when new requests come.
"""
