"""Say what a weight file or model directory is, judged by its contents and not by its name.

dialogpt inspect medium_ft.pkl
dialogpt inspect microsoft/DialoGPT-small --json
"""

import argparse
import json

from dialogpt_jax.cli import streams
from dialogpt_jax.convert.doctor import describe_findings, inspect
from dialogpt_jax.weights import hub
from dialogpt_jax.weights.directory import CONFIG_FILE, find_weights, read_config_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="FILE", help="a weight file, a model directory, or a name on the Hub")
    parser.add_argument("--revision", help="a branch, tag or commit on the Hub")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")


def run(args: argparse.Namespace) -> int:
    place = hub.resolve(args.path, revision=args.revision)
    if place.is_dir():
        findings = inspect(find_weights(place), config=read_config_file(place / CONFIG_FILE), name=args.path)
    else:
        beside = place.parent / CONFIG_FILE
        findings = inspect(place, config=read_config_file(beside) if beside.is_file() else None)
    if args.json:
        streams.print_json(json.dumps(findings.to_json(), indent=2))
    else:
        streams.show(describe_findings(findings))
    return 0
